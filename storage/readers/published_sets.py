"""File formats of published human data that no package provides: their layout, source and license."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from storage.readers.human import HumanSetKind, VectorComparison
from storage.readers.tabular import ColumnRef

PublishedFormatName = Literal["things", "leuven", "mcrae", "swow"]


@dataclass(frozen=True)
class PublishedFormat:
    """How a published file is read, and where it is from. `items` is the file with the items' names."""

    kind: HumanSetKind
    file: str
    source: str
    citation: str
    license: str
    columns: tuple[ColumnRef, ...] = ()
    items: str = ""
    vectors: VectorComparison = "cosine"


_FORMATS = (
    PublishedFormat(
        "embeddings",
        "spose_embedding_49d_sorted.txt",
        "https://osf.io/z2784",
        "Hebart, Zheng, Pereira and Baker 2020, Revealing the multidimensional mental representations, "
        "Nature Human Behaviour 4",
        "CC BY 4.0",
        items="unique_id.txt",
        # the probability of the published similarities
        vectors="softmax",
    ),
    PublishedFormat(
        "features",
        "animal_category_features_sum.csv",
        "https://github.com/mikulatomas/dutch-concepts (cleaned, in English)",
        "De Deyne et al. 2008, Exemplar by feature applicability matrices and other Dutch normative "
        "data, Behavior Research Methods 40(4)",
        "none stated",
    ),
    PublishedFormat(
        "features",
        "CONCS_FEATS_concstats_brm.txt",
        "https://doi.org/10.3758/BF03192726 (supplement)",
        "McRae, Cree, Seidenberg and McNorgan 2005, Semantic feature production norms, Behavior "
        "Research Methods 37(4)",
        "none stated",
        columns=("Concept", "Feature", "Prod_Freq"),
    ),
    PublishedFormat(
        "associations",
        "strength.SWOW-EN.R123.csv",
        "https://smallworldofwords.org/project/research",
        "De Deyne, Navarro, Perfors, Brysbaert and Storms 2019, The Small World of Words, Behavior "
        "Research Methods 51",
        "CC BY-NC-ND 3.0",
    ),
)
PUBLISHED_FORMATS: dict[PublishedFormatName, PublishedFormat] = dict(
    zip(get_args(PublishedFormatName), _FORMATS, strict=True)
)
