"""One process of `accelerate launch`: trains the plain model of the tests. Arguments: data, output, batch, steps."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mip

mip.load_package()
sys.path.append(str(Path(__file__).resolve().parent))
from mip_adapter.training.dataset import SubjectFolder  # noqa: E402
from mip_adapter.training.processes import Accelerated  # noqa: E402
from mip_adapter.training.trainer import train  # noqa: E402
from training_world import PlainModel, small_adapter, small_recipe  # noqa: E402

data, output, batch, steps = sys.argv[1:]
recipe = small_recipe(batch_size=int(batch), steps=int(steps), accumulate=2)
processes = Accelerated(cpu=True)
outcome = train(
    PlainModel(), SubjectFolder(data, recipe), small_adapter(), recipe, folder=Path(output), processes=processes
)
print(processes.rank, processes.count, len(outcome.losses))
