"""Catalogue of the known data sets: their files, checksums and mirrors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from normkit.errors import OptionError, message

__all__ = ["SPECS", "SUBSET", "SUBSET_PLACES", "File", "Spec", "owner_of", "spec_of"]


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a data set.

    Attributes:
        name: as it is published, without the ``.gz`` of an IDX file.
        sha256: of an IDX file's *content*, decompressed; of a CIFAR archive as it is. Compressing
            the same content again gives other bytes (Debian does), and the content is what counts.
        size: in bytes, of what ``sha256`` is of.
        md5: of the file as the official mirrors serve it.
        train: the archive's members that hold the training images, in order.
        test: those with the test images.
        label_bytes: before the pixels of each record, in an archive's binary form.
    """

    name: str
    sha256: str
    size: int
    md5: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    label_bytes: int = 1


@dataclasses.dataclass(frozen=True)
class Spec:
    """Description of a data set.

    Attributes:
        files: all four of an IDX set; of CIFAR's any one is enough, and the first is fetched.
        counts: images for training and for testing.
        shape: of an image, (C, H, W).
        mean: of the training images, per channel, where 255 is 1.
        std: likewise.
        mirrors: official places on the web, each the beginning of a file's address.
        package: the system package that holds it, or "".
        folder: where that package puts it.
        aliases: folders inside a named folder where other tools keep these files.
        base: the data set that this one is computed from on loading, or "". Its files are these.
    """

    name: str
    title: str
    licence: str
    classes: tuple[str, ...]
    files: tuple[File, ...]
    counts: tuple[int, int]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrors: tuple[str, ...]
    package: str = ""
    folder: Path | None = None
    aliases: tuple[str, ...] = ()
    base: str = ""

    @property
    def is_idx(self) -> bool:
        """True if the data set is four IDX files (MNIST family), False if an archive."""
        return self.files[0].name.endswith("-ubyte")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The SHA-256 are of the content of Debian's files. That content is the official one: with the
# gzip header that the official files have (their name and time), the same compressed bytes have
# the official MD5 that stands beside each.
_FASHION = Spec(
    name="fashion-mnist",
    title="Fashion-MNIST",
    licence="MIT, © 2017 Zalando SE",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    files=(
        File(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            47_040_016,
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        File(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            60_008,
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        File(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            7_840_016,
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        File(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            10_008,
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    counts=(60_000, 10_000),
    shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    package="dataset-fashion-mnist",
    folder=Path("/usr/share/datasets/fashion-mnist"),
    aliases=("FashionMNIST/raw",),
)

# Moments as those of the others, of the training images as normkit.lab.data.lighting lights them.
_LIT = dataclasses.replace(
    _FASHION,
    name="fashion-mnist-lit",
    title="Fashion-MNIST, lit",
    mean=(0.4167,),
    std=(0.2564,),
    base=_FASHION.name,
)

_TORONTO = ("https://www.cs.toronto.edu/~kriz/",)
_CIFAR_LICENCE = "none stated; cite Krizhevsky 2009"

_CIFAR10 = Spec(
    name="cifar-10",
    title="CIFAR-10",
    licence=_CIFAR_LICENCE,
    classes=_words("airplane automobile bird cat deer dog frog horse ship truck"),
    files=(
        File(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            170_052_171,
            "c32a1d4ab5d03f1284b67883e8d87530",
            train=tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
            test=("cifar-10-batches-bin/test_batch.bin",),
        ),
        File(
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
            "c58f30108f718f92721af3b95e74349a",
            train=tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            test=("cifar-10-batches-py/test_batch",),
        ),
    ),
    counts=(50_000, 10_000),
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    mirrors=_TORONTO,
)

_CIFAR100 = Spec(
    name="cifar-100",
    title="CIFAR-100",
    licence=_CIFAR_LICENCE,
    classes=_words(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
        tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm"""
    ),
    files=(
        File(
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168_513_733,
            "03b5dce01913d631647c71ecec9e9cb8",
            train=("cifar-100-binary/train.bin",),
            test=("cifar-100-binary/test.bin",),
            label_bytes=2,
        ),
        File(
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            169_001_437,
            "eb9058c3a382ffc7106e4002c42a8d85",
            train=("cifar-100-python/train",),
            test=("cifar-100-python/test",),
        ),
    ),
    counts=(50_000, 10_000),
    shape=(3, 32, 32),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    mirrors=_TORONTO,
)

SPECS: dict[str, Spec] = {spec.name: spec for spec in (_FASHION, _LIT, _CIFAR10, _CIFAR100)}

# 5,000 and 1,000 images of Fashion-MNIST that come with the package; make_subset draws them.
SUBSET = dataclasses.replace(
    _FASHION,
    files=(
        File(
            "train-images-idx3-ubyte",
            "f83ee728fa95f7424c007293b3b3f7741eb198b1eb7f438e0bf0ac7a774a401a",
            3_920_016,
        ),
        File(
            "train-labels-idx1-ubyte",
            "9dff3d0693c7df822ebb75c26684e62827f899c3b88c8b0dc2869c44cf15188d",
            5_008,
        ),
        File(
            "t10k-images-idx3-ubyte",
            "259df9fb84a864a8676e16251da6644f8e9823d4199c89ddd8744e482f3e3ad5",
            784_016,
        ),
        File(
            "t10k-labels-idx1-ubyte",
            "e06570b38aae595ad42cb52eb484095bc09cd878269294fdc72e55c3346d7af7",
            1_008,
        ),
    ),
    counts=(5_000, 1_000),
    mirrors=(),
    package="",
    folder=None,
)

# For each image of the official files, 1 if it is in the subset, in training and in test images.
SUBSET_PLACES = (
    File(
        "train-chosen-idx1-ubyte",
        "2213c1fd2e98452e9bba960a28114ab2fad8e83ea8d9c1db528ce70874df55a4",
        60_008,
    ),
    File(
        "t10k-chosen-idx1-ubyte",
        "af08e33128166735a16a486c8446c19f6621eebd8d054be409aed7ea72966a4c",
        10_008,
    ),
)


def spec_of(name: str) -> Spec:
    """Return the catalogue's entry for a data set.

    Raises:
        OptionError: no such name.

    >>> spec_of("fashion-mnist").counts
    (60000, 10000)
    """
    if name not in SPECS:
        raise OptionError(
            message(
                f"one of the data sets {', '.join(SPECS)}", repr(name), "use one of these names"
            )
        )
    return SPECS[name]


def owner_of(name: str) -> Spec:
    """Return the data set whose files this one is made of: itself, or the one it is computed from.

    Raises:
        OptionError: no such name.

    >>> owner_of("fashion-mnist-lit").name
    'fashion-mnist'
    """
    spec = spec_of(name)
    return spec_of(spec.base) if spec.base else spec
