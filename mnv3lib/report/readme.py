"""What README shows of the records: the results, what others published, and the verdicts on the claims."""

import re
from pathlib import Path

from mnv3lib import writing
from mnv3lib.errors import InputError
from mnv3lib.study import ablations_text, results

MARKERS = ("<!-- results: written by mnv3 report -->", "<!-- end of results -->")


def block(models: Path | None = None) -> str:
    """What README has between its two markers, of the trained models in `models` and the recorded ablations."""
    peers = results.peers_for_print()
    peers["published by"] = [
        f"[{name}]({url})" for name, url in results.peers()[["source", "url"]].itertuples(index=False)
    ]
    recorded = results.recorded(models)
    return "\n\n".join(
        [
            results.markdown(recorded),
            f"{results.goals_in_words(results.goals(recorded))} [Page 02](report/02_train.html) has the table.",
            "Published by others for networks of this family on CIFAR-100 at 32 px, after many more epochs:",
            results.as_markdown(peers),
            f"{ablations_text.HOW_JUDGED} [Page 05](report/05_ablations.html) has the comparisons.",
            results.as_markdown(ablations_text.recorded_claims(models=models)),
        ]
    )


def update(readme: Path, models: Path | None = None) -> None:
    """Put `block` between the two markers of `readme`."""
    text = readme.read_text(encoding="utf-8")
    start, end = MARKERS
    if text.count(start) != 1 or text.count(end) != 1:
        raise InputError(f"{readme} should have each of the lines {start} and {end} once")
    between = f"{start}\n\n{block(models)}\n\n{end}"
    new = re.sub(f"{re.escape(start)}.*{re.escape(end)}", lambda _: between, text, flags=re.DOTALL)
    if new != text:
        with writing.replacing(readme) as temporary:
            temporary.write_text(new, encoding="utf-8")
