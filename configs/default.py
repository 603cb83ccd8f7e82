"""A folder of photos, EfficientNet-Lite0 and the defaults.

    amx run configs/default.py --data PHOTOS --output OUT

Every photo gets a mask on which the classifier still names its own top class, and from which no
square of 8 × 8 pixels can be taken. On 64 ImageNet validation photos of small objects: all
sufficient and 1-minimal, a median of 1.6 % of the pixels (benchmarks/README.md). `amx inspect OUT`
says the same of yours.
"""

from amx_jax.experiment import Experiment

experiment = Experiment(data="photos")
