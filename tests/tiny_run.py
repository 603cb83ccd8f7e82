"""A process of a run with the tiny classifier, to be killed: DATA OUTPUT [INDEX COUNT [PORT]]."""

import json
import signal
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent))

CONFIG = {
    "generator": "grid",
    "grid": 8,
    "stages": (),
    "steps": 40,
    "cell": 4,
    "trials": 3,
    "batch_size": 4,
    "controls": 2,
}


def main() -> int:
    """Run until the end or SIGTERM; the exit status is 0 where all is put together, 3 where stopped."""
    jax.config.update("jax_enable_compilation_cache", True)
    data, output, *share = sys.argv[1:]
    index, count, port = [*map(int, share), *(0, 1, 0)[len(share) :]]
    if port:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from conftest import make_tiny

    from amx_jax import Config
    from amx_jax.data.sources import open_source
    from amx_jax.experiment import Experiment
    from amx_jax.runner import Runner, Share, Stopped

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    experiment = Experiment(data, output, rows=7, save_every=0.2, workers=2, config=Config(**CONFIG))
    runner = Runner(
        experiment,
        open_source(data),
        make_tiny(),
        share=Share(index, count),
        stopping=lambda: bool(asked),
    )
    try:
        whole = runner.run()
    except Stopped:
        return 3
    print(json.dumps({"whole": whole, "explained": runner.standing.explained}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
