"""CIFAR-10's test images and its ResNet-20.

    amx run configs/cifar10_resnet20.py --weights cifar10_resnet20-12fca82f.th --data tfds:cifar10/test

needs akamaster's file of weights. The images are 32 pixels wide and pruned pixel by pixel.
Expected, as of 16 images (benchmarks/README.md): all sufficient and 1-minimal, a median of 1 % of
the pixels, which is ten.
"""

from amx_jax import Config
from amx_jax.experiment import Experiment

experiment = Experiment(
    data="tfds:cifar10/test",
    output="amx-cifar10",
    classifier="cifar_resnet20",
    weights="cifar10_resnet20-12fca82f.th",
    config=Config(grid=16, cell=1, batch_size=64),
)
