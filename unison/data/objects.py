"""160 everyday objects and their grammar: COCO's 80 classes, under the names GenEval gives them, and 80 more."""

from __future__ import annotations

from dataclasses import dataclass

from unison.answers import NUMBERS

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's colours."""

COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
MORE = (
    *("lion", "tiger", "monkey", "rabbit", "fox", "wolf", "goose", "duck", "owl", "penguin"),
    *("dolphin", "octopus", "butterfly", "frog", "turtle", "snail", "squirrel", "kangaroo", "camel", "pig"),
    *("tree", "cactus", "mushroom", "sunflower", "leaf", "pumpkin", "strawberry", "pear", "lemon", "tomato"),
    *("pineapple", "cherry", "loaf", "egg", "cookie", "pancake", "teapot", "kettle", "frying pan", "jar"),
    *("candle", "lamp", "lantern", "mirror", "ladder", "bucket", "broom", "hammer", "screwdriver", "wrench"),
    *("shelf", "wardrobe", "drum", "guitar", "violin", "piano", "trumpet", "ukulele", "microphone", "camera"),
    *("telescope", "compass", "globe", "hourglass", "key", "watch", "hat", "scarf", "shoe", "glove"),
    *("basket", "box", "envelope", "pencil", "balloon", "tent", "anchor", "helicopter", "tractor", "unicycle"),
)
OBJECTS = COCO + MORE

IRREGULAR = {
    "person": "people", "sheep": "sheep", "goose": "geese", "computer mouse": "computer mice",
    "knife": "knives", "wolf": "wolves", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves",
    "scarf": "scarves", "cactus": "cacti", "tomato": "tomatoes",
}  # fmt: skip
"""Plurals that do not follow from the spelling."""
PAIRS = ("scissors", "skis")
"""Always plural: counted by the pair."""
HEADS = ("broccoli",)
"""Not counted at all but by the head."""
UNCOLORED = ("person", "orange", "lemon", "mirror", "zebra")
"""Not asked for in a colour: it would say something else, or nothing."""


@dataclass(frozen=True)
class Phrase:
    """A number of equal objects, of one colour where that is asked for."""

    noun: str
    count: int = 1
    color: str | None = None

    def __str__(self) -> str:
        """As in "two red cars", "an orange bus", "a pair of scissors"."""
        words = f"{self.color} {self.things}" if self.color else self.things
        words = f"{self._unit} of {words}" if self._unit else words
        return f"{NUMBERS[self.count]} {words}" if self.count > 1 else f"{article(words)} {words}"

    @property
    def things(self) -> str:
        """The noun in its number, without the unit that it is counted by."""
        return self.noun if self.count == 1 or self._unit else plural(self.noun)

    @property
    def counted(self) -> str:
        """The noun in its number, with the unit that it is counted by."""
        return f"{self._unit} of {self.things}" if self._unit else self.things

    @property
    def are(self) -> str:
        return "are" if self.count > 1 or self.noun in PAIRS else "is"

    @property
    def _unit(self) -> str:
        unit = "pair" if self.noun in PAIRS else "head" if self.noun in HEADS else ""
        return unit + "s" * bool(unit and self.count > 1)


def plural(noun: str) -> str:
    """More than one of it; the last word changes."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(words: str) -> str:
    """a or an, by the sound that the words start with."""
    if words.startswith("hour"):
        return "an"
    return "an" if words[0] in "aeiou" and not words.startswith(("uni", "uku")) else "a"
