"""The vocabulary of a claim: plans, measures, endpoints, charts, tables.

A claim is declared with these words; :func:`define` makes the plan and the judge of it that the lab
knows. Derived from the declarations, and typed nowhere: the unit of a printed figure, the
decision in words, the kind of interval, the number of seeds, the text under a chart.
"""

from normkit.lab.claims.claim import Scale
from normkit.lab.claims.study.charts import (
    Curves,
    Series,
    along,
    along_steps,
    by_setting,
    published,
)
from normkit.lab.claims.study.define import define
from normkit.lab.claims.study.derived import either, error, first, mean_of_epochs, quarter
from normkit.lab.claims.study.dots import Dots
from normkit.lab.claims.study.endpoints import Endpoint
from normkit.lab.claims.study.measures import (
    CHANCE_LOSS,
    TEST,
    TEST_LOSS,
    TRAIN,
    TRAIN_LOSS,
    Measure,
    final,
    last,
    learned,
    over,
    steps,
    while_training,
)
from normkit.lab.claims.study.plan import (
    BN,
    NARROW_RESNET,
    ON_AND_OFF,
    WITH,
    WITHOUT,
    At,
    Plan,
    population,
)
from normkit.lab.claims.study.quantities import Quantity, mean
from normkit.lab.claims.study.quoted import Quoted
from normkit.lab.claims.study.tables import (
    ByArm,
    BySetting,
    Seeds,
    mean_of,
    settings_of,
    values_of,
)
from normkit.lab.claims.study.units import (
    DB,
    DECADES,
    HALVINGS,
    MAGNITUDE,
    NATS,
    NUMBER,
    PERCENT,
    POINTS,
    Unit,
)

__all__ = [
    "BN",
    "CHANCE_LOSS",
    "DB",
    "DECADES",
    "HALVINGS",
    "MAGNITUDE",
    "NARROW_RESNET",
    "NATS",
    "NUMBER",
    "ON_AND_OFF",
    "PERCENT",
    "POINTS",
    "TEST",
    "TEST_LOSS",
    "TRAIN",
    "TRAIN_LOSS",
    "WITH",
    "WITHOUT",
    "At",
    "ByArm",
    "BySetting",
    "Curves",
    "Dots",
    "Endpoint",
    "Measure",
    "Plan",
    "Quantity",
    "Quoted",
    "Scale",
    "Seeds",
    "Series",
    "Unit",
    "along",
    "along_steps",
    "by_setting",
    "define",
    "either",
    "error",
    "final",
    "first",
    "last",
    "learned",
    "mean",
    "mean_of",
    "mean_of_epochs",
    "over",
    "population",
    "published",
    "quarter",
    "settings_of",
    "steps",
    "values_of",
    "while_training",
]
