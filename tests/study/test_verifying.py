import json
import shutil

import numpy as np
import pytest
import torch

from mnv3lib import data, store, training
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.own import transfer
from mnv3lib.study import verifying


@pytest.fixture
def made(tmp_path, monkeypatch, few_digits, tiny):
    """A folder with one run of two epochs on a few digits, which are all the digits there are."""
    monkeypatch.setattr(data, "load", lambda name, folder=None: few_digits)
    recipe = tiny(epochs=2)
    training.train(recipe, dataset=few_digits, models=tmp_path, checkpoints=tmp_path / "c", log=lambda line: None)
    return tmp_path, recipe.run


def change(folder, run, **result):
    path = folder / run / "record.json"
    record = json.loads(path.read_text())
    record["result"] |= result
    path.write_text(json.dumps(record))


def test_a_run_is_confirmed_by_its_weights(made, capsys):
    folder, run = made
    table = verifying.measured(run, folder)
    assert table["confirmed"].all() and len(table) == 6
    assert main(["verify", run, "--models", str(folder)]) == 0
    assert "confirmed, all 6" in capsys.readouterr().err


def test_an_accuracy_that_is_not_the_weights_own_is_told(made, capsys):
    folder, run = made
    change(folder, run, top1=97.5)
    table = verifying.measured(run, folder).set_index("what")
    assert list(table.index[~table["confirmed"]]) == ["right in the first guess"]
    assert main(["verify", run, "--models", str(folder)]) == 1
    assert f"{run}: 1 of 6 are not confirmed" in capsys.readouterr().err


def test_other_weights_are_told_by_their_guesses(made):
    folder, run = made
    network = store.load(run, folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(-parameter)
    store.save_weights(network, folder / run / store.WEIGHTS)
    table = verifying.measured(run, folder).set_index("what")
    assert not table.loc["first guesses as recorded", "confirmed"]
    assert table.loc[["parameters", "MACs", "images"], "confirmed"].all()


def test_predictions_of_another_set_are_not_confirmed(made):
    folder, run = made
    kept = store.load_predictions(run, folder)
    with (folder / run / store.PREDICTIONS).open("wb") as file:
        np.savez(file, **{name: values[:-1] for name, values in kept.items()})
    row = verifying.measured(run, folder).set_index("what").loc["first guesses as recorded"]
    assert row["now"] == 0 and not row["confirmed"]


def test_another_network_to_start_from_is_told(made, few_digits, tiny, tmp_path):
    folder, run = made
    source, start = transfer.find(run, folder)
    begun = tiny(start=start, variant="begun", epochs=1)
    places = dict(models=folder, checkpoints=tmp_path / "c", log=lambda line: None)
    training.train(begun, dataset=few_digits, start=source, **places)
    assert verifying.retrained(begun.run, 1, folder, log=lambda line: None)["confirmed"].all()
    training.train(tiny(epochs=2, seed=0), dataset=few_digits, overwrite=True, **places)  # the same again, bit for bit
    assert verifying.retrained(begun.run, 1, folder, log=lambda line: None)["confirmed"].all()
    shutil.copy(folder / begun.run / store.WEIGHTS, folder / run / store.WEIGHTS)
    with pytest.raises(InputError, match=f"{begun.run} started from {start}, and what is here now is {run}@"):
        verifying.retrained(begun.run, 1, folder)


def test_the_first_epochs_trained_again_are_the_recorded_ones(made, capsys):
    folder, run = made
    table = verifying.retrained(run, 1, folder, log=lambda line: None)
    assert verifying.exactly(table) and table["confirmed"].all()
    assert list(table["what"]) == ["epoch 1, loss", "epoch 1, training top-1 %"]
    assert main(["verify", run, "--models", str(folder), "--retrain"]) == 0
    assert "confirmed, all 4" in capsys.readouterr().err


def test_another_history_is_told(made, capsys):
    folder, run = made
    path = folder / run / "history.csv"
    rows = store.load_history(run, folder)
    rows.assign(train_loss=rows["train_loss"] + [0.05, 0.2]).to_csv(path, index=False)
    table = verifying.retrained(run, 2, folder, log=lambda line: None)
    assert list(table["confirmed"]) == [True, True, False, True]
    assert not verifying.exactly(table)
    assert main(["verify", run, "--models", str(folder), "--retrain", "--epochs", "1"]) == 0
    assert "not bit for bit" in capsys.readouterr().err


def test_what_cannot_be_verified_is_one_line(made, capsys):
    folder, run = made
    with pytest.raises(InputError, match="has 2, choose from 1 to 2"):
        verifying.retrained(run, 3, folder)
    history = folder / run / store.HISTORY
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(InputError, match=r"epochs 2: the history of .* has only 1, name as many or fewer"):
        verifying.retrained(run, 2, folder)
    (folder / run / store.WEIGHTS).unlink()
    with pytest.raises(InputError, match="without weights: --retrain"):
        verifying.measured(run, folder)
    with pytest.raises(SystemExit):
        main(["verify", run, "--models", str(folder), "--epochs", "1"])
    assert "--epochs is for --retrain" in capsys.readouterr().err


def test_without_cifar100_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(data, "available", lambda folder=None: None)
    with pytest.raises(InputError, match="CIFAR-100 is not on this machine"):
        verifying.measured("mobilenet_v3_small_0.25")
