"""Caffe's quick network for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import INITS, Image, choice, initialise, pooled, too_small

__all__ = ["cifar10_quick"]

# Caffe's fillers, by layer: zero-mean normal weights of this deviation, biases 0.
_DEVIATIONS = {"conv1": 1e-4, "conv2": 1e-2, "conv3": 1e-2, "fc1": 1e-1, "fc2": 1e-1}


def cifar10_quick(layers: Layers, image: Image, *, init: str = "caffe") -> nn.Sequential:
    """Build three 5×5 convolutions of 32, 32 and 64 channels, a dense layer of 64, the logits.

    Source: Caffe, ``examples/cifar10/cifar10_quick_train_test.prototxt``. Max pooling after the
    first convolution and average pooling after the others, all 3×3 with stride 2 and Caffe's
    rounding up, so 32 pixels become 16, 8, 4. Caffe pools before its first ReLU; here the
    activation comes first, which gives the same numbers since ReLU is monotonic. There is no
    activation after the first dense layer, in Caffe neither.

    Args:
        init: "caffe" (the default, its normal fillers of deviation 1e-4, 1e-2, 1e-2, 0.1 and 0.1,
            biases 0), or one of :func:`normkit.lab.models.parts.initialise`. Without a normalizer
            the deviation of 1e-4 makes the start slow, as it did in Caffe.
    """
    choice("init", init, ("caffe", *INITS))
    too_small("cifar10-quick", image.size, 8)
    side = image.size
    for _ in range(3):
        side = pooled(side, 3, 2, ceil=True)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(image.channels, 32, 5, padding=2),
            norm1=layers.conv_norm(32),
            act1=layers.activation(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            norm2=layers.conv_norm(32),
            act2=layers.activation(),
            pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            norm3=layers.conv_norm(64),
            act3=layers.activation(),
            pool3=nn.AvgPool2d(3, 2, ceil_mode=True),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * side * side, 64),
            norm4=layers.dense_norm(64),
            fc2=nn.Linear(64, image.classes),
        )
    )
    if init == "caffe":
        for name, deviation in _DEVIATIONS.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    else:
        initialise(model, init)
    return model
