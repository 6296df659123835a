"""The record of a run that was never made, for tests of what reads records."""

from mnv3lib.recipe import Recipe


def record_of(made: Recipe, top1: float = 50.0, images: int = 100, **changes) -> dict:
    """As store.load_record wants it; `changes` replace or add entries."""
    return {
        "run": made.run,
        "recipe": made.as_dict(),
        "parameters": 1,
        "macs": 1_000_000,
        "result": {"top1": top1, "top5": 90.0, "images": images},
        "environment": {},
        "commit": None,
        "started": "2026-01-01T00:00:00Z",
        "seconds": 60.0,
        "images_per_second": 1.0,
    } | changes
