"""ImageNet's validation photos on every host of a TPU slice.

    gcloud compute tpus tpu-vm ssh NAME --worker=all --command \
      "amx run configs/tpu_multihost.py --coordinator auto --data tfds:imagenet2012/validation"

on a folder that all hosts see. Each host takes its share of the photos and none waits for another;
a host that is preempted loses a minute of work at most, and the same command, on any number of
hosts, goes on. Elsewhere give each process `--coordinator HOST:PORT --processes N --process I`, or
only the last two: nothing is sent between them. What it takes is worked out in benchmarks/scale.md;
no TPU was at hand to measure it.
"""

from amx_jax import Config
from amx_jax.experiment import Experiment

experiment = Experiment(
    data="tfds:imagenet2012/validation",
    output="/mnt/shared/amx-imagenet",
    rows=2500,
    workers=16,
    config=Config(batch_size=256, candidates=256),
)
