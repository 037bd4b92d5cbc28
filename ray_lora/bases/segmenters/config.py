"""What a segmenter is: which network, the pictures that it takes, the classes that it was trained on.

SegmenterConfig(network=UnetConfig(channels=(16, 32, 64)), image_size=(96, 96), num_labels=3)
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_lora.recipe import Spec

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UnetConfig(Spec):
    """A U-Net of ours (Ronneberger et al. 2015, arXiv 1505.04597), padded and with batch norms.

    Attributes:
        channels: of each level, the finest first; each level halves height and width.
    """

    kind: Literal["unet"] = "unet"
    channels: tuple[int, ...] = Field(default=(16, 32, 64, 128), min_length=2)

    @property
    def cell(self) -> int:
        """Height and width of a picture are multiples of it."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def layers(self) -> int:
        return 4 * len(self.channels) - 2

    @property
    def widest(self) -> int:
        """Channels at full height and width."""
        return self.channels[0]


class ErfnetConfig(Spec):
    """ERFNet (Romera et al. 2018) as mmsegmentation has it, with its head of one convolution and a classifier.

    Attributes:
        fused: whether the batch norms behind convolutions are folded into them; those behind a concatenation and a
            transposed convolution stay.
    """

    kind: Literal["erfnet"] = "erfnet"
    fused: bool = False

    @property
    def cell(self) -> int:
        return 8

    @property
    def layers(self) -> int:
        return 75

    @property
    def widest(self) -> int:
        return 16


class CraftConfig(Spec):
    """CRAFT (Baek et al. 2019, arXiv 1904.01941): VGG with batch norms, and a U-Net's way up.

    Attributes:
        width: channels of the first convolution, a multiple of 4; all others follow from it. 64 is the authors'.
    """

    kind: Literal["craft"] = "craft"
    width: int = Field(default=64, ge=4, multiple_of=4)

    @property
    def cell(self) -> int:
        return 16

    @property
    def layers(self) -> int:
        return 26

    @property
    def widest(self) -> int:
        return self.width


class MonaiUnetConfig(Spec):
    """MONAI's `UNet` of two dimensions; the names are those of its arguments."""

    kind: Literal["monai-unet"] = "monai-unet"
    channels: tuple[int, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    strides: tuple[int, ...] = (2, 2, 2)
    kernel_size: int = Field(default=3, ge=1)
    up_kernel_size: int = Field(default=3, ge=1)
    num_res_units: int = Field(default=0, ge=0)
    act: Literal["PRELU", "RELU", "LEAKYRELU"] = "PRELU"
    norm: Literal["INSTANCE", "BATCH"] = "INSTANCE"
    bias: bool = True

    @model_validator(mode="after")
    def _a_stride_a_step(self) -> MonaiUnetConfig:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(f"strides must be {len(self.channels) - 1} numbers, one fewer than channels")
        return self

    @property
    def cell(self) -> int:
        product = 1
        for stride in self.strides:
            product *= stride
        return product

    @property
    def layers(self) -> int:
        return 2 * len(self.channels) * max(self.num_res_units, 1)

    @property
    def widest(self) -> int:
        return self.channels[0]


class MonaiBasicUnetConfig(Spec):
    """MONAI's `BasicUNet` of two dimensions; the names are those of its arguments."""

    kind: Literal["monai-basic-unet"] = "monai-basic-unet"
    features: tuple[int, int, int, int, int, int] = (32, 32, 64, 128, 256, 32)
    act: Literal["PRELU", "RELU", "LEAKYRELU"] = "LEAKYRELU"
    norm: Literal["INSTANCE", "BATCH"] = "INSTANCE"
    upsample: Literal["deconv", "pixelshuffle", "nontrainable"] = "deconv"

    @property
    def cell(self) -> int:
        return 16

    @property
    def layers(self) -> int:
        return 22

    @property
    def widest(self) -> int:
        return max(self.features[0], self.features[5])


Network = Annotated[
    UnetConfig | ErfnetConfig | CraftConfig | MonaiUnetConfig | MonaiBasicUnetConfig, Field(discriminator="kind")
]


class SegmenterConfig(Spec):
    """The file `config.json` of a base's folder.

    Attributes:
        network: which one, and its sizes.
        image_size: height and width of the pictures, in pixels.
        image_mean, image_std: of red, green and blue from 0 to 1, by which a picture is normalised.
        num_labels: classes of the classifier in the file; id2label: their names, by number.
    """

    model_type: Literal["segmenter"] = "segmenter"
    network: Network = UnetConfig()
    image_size: tuple[int, int] = (96, 96)
    image_mean: tuple[float, float, float] = _IMAGENET_MEAN
    image_std: tuple[float, float, float] = _IMAGENET_STD
    num_labels: int = Field(default=2, ge=1)
    id2label: dict[int, str] | None = None

    @model_validator(mode="after")
    def _whole_cells(self) -> SegmenterConfig:
        cell = self.network.cell
        if any(side < 2 * cell or side % cell for side in self.image_size):
            raise ValueError(
                f"image_size {list(self.image_size)} must be two multiples of {cell}, of {2 * cell} at least, height "
                f"and width, for a {self.network.kind} of these sizes"
            )
        return self

    @field_validator("image_std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"image_std {list(std)} must be three positive numbers")
        return std

    @field_validator("id2label")
    @classmethod
    def _named(cls, names: dict[int, str] | None) -> dict[int, str] | None:
        if names is not None and sorted(names) != list(range(len(names))):
            raise ValueError("id2label must name the outputs 0, 1, 2, … one by one")
        return names

    @property
    def num_hidden_layers(self) -> int:
        """Convolutions before the classifier."""
        return self.network.layers

    @property
    def hidden_size(self) -> int:
        """What a layer keeps of a patch of 16 x 16 pixels, in the units of `running.plan`, which counts 32 times it."""
        return 4 * self.network.widest

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes' names by number; None where they are not known."""
        names = self.id2label
        return None if names is None or len(names) != self.num_labels else tuple(names[at] for at in range(len(names)))
