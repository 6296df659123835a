"""What others have published: the papers, the earlier report, and peers on CIFAR-100."""

from importlib import resources

import pandas as pd

from mnv3lib.errors import choose


def load(source: str | None = None) -> pd.DataFrame:
    """The published numbers, a row a network; only those of `source` if it is given.

    Columns: source, network (v1, v2, v3_small or v3_large), width, resolution (pixels a side), classes, epochs,
    parameters_m and macs_m (millions), top1 (percent), latency_ms (milliseconds), note, url. NaN is what the source
    does not tell (an empty string in note and url). Raises InputError on an unknown source.
    """
    with resources.files("mnv3lib.study").joinpath("published.csv").open() as file:
        table = pd.read_csv(file, dtype={"epochs": "Int64"}).fillna({"note": "", "url": ""})
    if source is None:
        return table
    choose("source", source, table["source"].unique())
    return table[table["source"] == source].reset_index(drop=True)
