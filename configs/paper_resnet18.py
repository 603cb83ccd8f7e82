"""The paper's own setting: ResNet-18 and its objective as a fixed weighted sum, on ImageNet.

    amx run configs/paper_resnet18.py --data tfds:imagenet2012/validation

needs torchvision's file of weights in the current folder and a data set that TFDS has prepared; a
folder of photos serves as well. The paper reports masks of 2 to 5 % of the pixels. It publishes no
weights of its terms: ours are in `amx_jax.preset("paper")`, and nobody has run this configuration
on ImageNet yet. With EfficientNet-Lite0 in place of ResNet-18 the same objective gave a median of
2.9 % on six photos (benchmarks/README.md).
"""

from amx_jax import preset
from amx_jax.experiment import Experiment

experiment = Experiment(
    data="tfds:imagenet2012/validation",
    output="amx-paper-resnet18",
    classifier="resnet18",
    weights="resnet18-f37072fd.pth",
    config=preset("paper"),
)
