"""A process that trains the plain model of the tests, alone or as one of `accelerate launch`.

Arguments: data, output, batch size, steps and, optionally, how many workers read the pictures. The environment variable
MIP_FAIL_AT is the step after which `on_step` fails.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
import launcher.package  # noqa: E402

launcher.package.load_package()
from mip_adapter.commands.train import stop_signal  # noqa: E402
from mip_adapter.training.dataset import SubjectFolder  # noqa: E402
from mip_adapter.training.processes import Accelerated, Alone  # noqa: E402
from mip_adapter.training.trainer import train  # noqa: E402
from support.training_world import PlainModel, small_adapter, small_recipe  # noqa: E402

data, output, batch, steps, *workers = sys.argv[1:]
reading = {"workers": int(workers[0])} if workers else {}
recipe = small_recipe(batch_size=int(batch), steps=int(steps), accumulate=2, save_every=1, **reading)


def watch(progress) -> None:
    if progress.step == int(os.environ.get("MIP_FAIL_AT", "0")):
        raise OSError("No space left on device")


processes = Accelerated(cpu=True) if "WORLD_SIZE" in os.environ else Alone()
outcome = train(
    PlainModel(),
    SubjectFolder(data, recipe),
    small_adapter(),
    recipe,
    folder=Path(output),
    processes=processes,
    on_step=watch,
    asked_to_stop=stop_signal(),
)
# In one write, so that the lines of several processes do not mix.
os.write(1, f"{processes.rank} {processes.count} {len(outcome.losses)} {outcome.stopped}\n".encode())
