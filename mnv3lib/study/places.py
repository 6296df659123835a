"""Where a run was trained, as its record tells."""


def trained_on(record: dict) -> str:
    """What a run was trained on, and with how many threads: "AMD EPYC, 1 thread; NVIDIA H200 from epoch 10"."""
    places, epochs = _places(record, names=True), record["recipe"]["epochs"]
    told = [f"{place} from epoch {after + 1}" if after else place for after, place in places if after < epochs]
    return "; ".join(told + [f"measured on {place}" for after, place in places if after >= epochs])


def devices(record: dict) -> str:
    """As `trained_on`, in short: CPU, GPU, or GPU+CPU of a run begun on one and ended on the other."""
    return "+".join(place for after, place in _places(record) if after < record["recipe"]["epochs"])


def _places(record: dict, names: bool = False) -> list[tuple[int, str]]:
    """Where a run was begun and where it went on, each with the number of epochs that were done by then.

    An imported run came here trained.
    """
    if "imported" in record:
        return [(0, "an unknown machine"), (record["recipe"]["epochs"], _told(record["environment"], names))]
    places = [(0, _told(record["environment"], names))]
    for entry in record.get("resumed", []):
        place = _told(entry.get("environment", record["environment"]), names)
        if places[-1][0] == entry["after_epoch"]:  # nothing was trained there
            places.pop()
        if not places or place != places[-1][1]:
            places.append((entry["after_epoch"], place))
    return places


def _told(environment: dict, names: bool) -> str:
    device, threads = environment.get("device", "cpu"), environment.get("threads")
    if not names:
        return "CPU" if device == "cpu" else "GPU"
    if device != "cpu":
        return str(device)
    name = str(environment.get("processor") or "CPU")
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name
