"""The columns of every table, with what they mean: the one place that names them."""

from __future__ import annotations

import pyarrow as pa

from storage.store.commit import KEY


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


def _schema(key: str, fields: list[pa.Field]) -> pa.Schema:
    """A schema, and the columns that tell its rows apart: no two of a run agree in all of them."""
    return pa.schema(fields, metadata={KEY: key.encode()})


_TEXT = pa.string()

_CONCEPT_SET = _field("concept_set", _TEXT, "name of the concept set and the start of its hash")
_MODEL = _field("model", _TEXT, "the model, as the sweep file names it")
_REVISION = _field("revision", _TEXT, "the revision, as the sweep file names it")
_CONCEPT = _field("concept", _TEXT, "name of the concept")
_SENTENCE_ID = _field("sentence_id", pa.int64(), "number of the sentence in its set, from 0")
_POOLING = _field("pooling", _TEXT, "max, concept or context: over which tokens the maximum goes")
_LAYER = _field("layer", pa.int32(), "number of the layer, from 0")
_SITE = _field("site", _TEXT, "place in the layer, for example mlp.hidden")
_UNIT = _field("unit", pa.int32(), "coordinate in the site, from 0")
_AP = "average precision as a detector of the concept"
_ATTRIBUTION = _field(
    "attribution",
    pa.float64(),
    "estimated change of log P of the concept's word when the neuron is forced to on_p50",
)

CONCEPTS = _schema(
    "concept_set,concept",
    [
        _CONCEPT_SET,
        _CONCEPT,
        _field("domain", _TEXT, "domain that the concept belongs to", nullable=True),
        _field("sense", _TEXT, "the sense meant: a WordNet id or a definition", nullable=True),
        _field("pos", _TEXT, "part of speech of the concept's word", nullable=True),
        _field("n_sentences", pa.int64(), "positive sentences of the concept"),
    ],
)

SENTENCES = _schema(
    "concept_set,sentence_id",
    [
        _CONCEPT_SET,
        _SENTENCE_ID,
        _field("text", _TEXT, "the sentence"),
        _field("source", _TEXT, "where the sentence comes from", nullable=True),
        _field("prompt", _TEXT, "what was asked for: fact or story", nullable=True),
        _field("generator", _TEXT, "the model that wrote it", nullable=True),
        _field("revision", _TEXT, "the model's revision", nullable=True),
        _field("seed", pa.int64(), "seed that it was written or drawn with", nullable=True),
        _field("flags", pa.list_(_TEXT), "what the quality gate objects to; none where it dropped"),
    ],
)

DROPPED = _schema(
    "concept_set,concept,reason",
    [
        _CONCEPT_SET,
        _CONCEPT,
        _field("reason", _TEXT, "what the quality gate objects to"),
        _field("dropped", pa.int64(), "sentences dropped for it"),
        _field("example", _TEXT, "the first of them"),
    ],
)

MEMBERSHIPS = _schema(
    "concept_set,sentence_id,concept",
    [
        _CONCEPT_SET,
        _SENTENCE_ID,
        _field("concept", _TEXT, "name of the concept; null for the pool, negative of all", True),
        _field("role", _TEXT, "positive: the sentence is about the concept; negative; or pool"),
        _field(
            "spans",
            pa.list_(pa.int32()),
            "where the concept's word stands: start and end of each occurrence, in characters",
        ),
    ],
)

SITES = _schema(
    "model,revision,concept_set,layer,site,pooling",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _LAYER,
        _SITE,
        _POOLING,
        _field("width", pa.int32(), "units of the site"),
    ],
)

ACTIVATION_FILES = _schema(
    "model,revision,concept_set,layer,site,pooling,first",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _LAYER,
        _SITE,
        _POOLING,
        _field("first", pa.int64(), "sentence_id of the first sentence in the file"),
        _field("sentences", pa.int64(), "sentences in the file"),
        _field("path", _TEXT, "file of the values, relative to the stage's folder"),
    ],
)

EXPERTS = _schema(
    "model,revision,concept_set,pooling,concept,layer,site,unit",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _POOLING,
        _CONCEPT,
        _LAYER,
        _SITE,
        _UNIT,
        _field("ap", pa.float64(), f"{_AP}, at the reference prevalence"),
        _field("ap_raw", pa.float64(), f"{_AP}, every sentence counted once"),
        _field("auroc", pa.float64(), "area under the ROC curve"),
        _field("on_p50", pa.float32(), "median activation on the concept's positives"),
        _field("on_p90", pa.float32(), "90th percentile of the activation on the positives"),
        _field("off_mean", pa.float32(), "mean activation on the concept's negatives"),
    ],
)

CHANCE = _schema(
    "model,revision,concept_set,pooling,layer,site,concept,shuffle",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _POOLING,
        _LAYER,
        _SITE,
        _CONCEPT,
        _field("shuffle", pa.int32(), "0: the labels as they are; from 1: shuffled over the sentences"),
        _field("best_ap", pa.float64(), "highest AP of the site's neurons"),
        _field("n_above", pa.list_(pa.int64()), "neurons with an AP above 0, 0.05, 0.1, ... 0.95"),
    ],
)

SCORED_CONCEPTS = _schema(
    "number",
    [
        _field("number", pa.int64(), "place of the concept in the files of scores, from 0"),
        _CONCEPT,
    ],
)

EXPERTS_VIEW = EXPERTS.append(_ATTRIBUTION.with_nullable(True))
"""The view `experts`: the table and what the stage `attributions` found, where it was run."""

CONTROL_EXPERTS = _schema(
    "model,revision,concept_set,pooling,control,concept,layer,site,unit",
    [*EXPERTS, _field("control", _TEXT, "half 1, half 2, length-matched, shuffled or NAME latents")],
)

ATTRIBUTIONS = _schema(
    "model,revision,concept_set,pooling,concept,layer,site,unit",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _POOLING,
        _CONCEPT,
        _LAYER,
        _SITE,
        _UNIT,
        _ATTRIBUTION,
        _field("attribution_odd", pa.float64(), "the same over the first, third, ... of the prompts"),
        _field("attribution_even", pa.float64(), "over the second, fourth, ... of the prompts"),
    ],
)

_STEERED = [
    _MODEL,
    _REVISION,
    _CONCEPT_SET,
    _POOLING,
    _CONCEPT,
    _field("selection", _TEXT, "which neurons are forced: none, ap, attribution or random"),
    _field("k", pa.int64(), "how many neurons are forced to their on value"),
]

_EFFECTS = [
    _field("change", pa.float64(), "mean change of log P of the concept's word, in nats"),
    _field("change_low", pa.float64(), "lower end of its 95% interval", nullable=True),
    _field("change_high", pa.float64(), "upper end", nullable=True),
    _field("others", pa.float64(), "mean change of log P of the other concepts' words", nullable=True),
    _field("others_low", pa.float64(), "lower end of its 95% interval", nullable=True),
    _field("others_high", pa.float64(), "upper end", nullable=True),
    _field("containing", pa.float64(), "share of continuations that have the concept's word", True),
    _field("containing_low", pa.float64(), "lower end of its 95% interval", nullable=True),
    _field("containing_high", pa.float64(), "upper end", nullable=True),
]

STEERING = _schema(
    "model,revision,concept_set,pooling,concept,selection,k",
    [*_STEERED, _field("n_prompts", pa.int64(), "neutral prompts"), *_EFFECTS],
)

STEERING_PROMPTS = _schema(
    "model,revision,concept_set,pooling,concept,selection,k,prompt",
    [
        *_STEERED,
        _field("prompt", _TEXT, "the neutral prompt"),
        _field("log_p", pa.float64(), "log P of the concept's word after the prompt, in nats"),
        _field("change", pa.float64(), "log_p less that without forcing"),
        _field("others", pa.float64(), "mean change of log P of the other concepts' words", True),
        _field("containing", pa.int64(), "continuations that have the concept's word"),
        _field("continuations", pa.list_(_TEXT), "how the model goes on from the prompt"),
    ],
)

STEERING_DOSES = _schema(
    "model,revision,concept_set,pooling,selection,k",
    [
        *(field for field in _STEERED if field.name != "concept"),
        _field("n_concepts", pa.int64(), "concepts that have so many neurons to force"),
        _field("n_prompts", pa.int64(), "neutral prompts"),
        *_EFFECTS,
        _field("positive", pa.float64(), "share of concepts whose change is above 0"),
    ],
)

STEERING_NEURONS = _schema(
    "model,revision,concept_set,pooling,concept,layer,site,unit",
    [
        *(field for field in _STEERED if field.name not in ("selection", "k")),
        _LAYER,
        _SITE,
        _UNIT,
        _field("ap", pa.float64(), f"{_AP}, at the reference prevalence"),
        _ATTRIBUTION,
        _field("change", pa.float64(), "mean change of log P of the word, this neuron alone forced"),
        _field("change_low", pa.float64(), "lower end of its 95% interval", nullable=True),
        _field("change_high", pa.float64(), "upper end", nullable=True),
    ],
)

INPUT_EMBEDDINGS = _schema(
    "concept",
    [
        _CONCEPT,
        _field("vector", pa.list_(pa.float32()), "mean input embedding of the tokens of its name"),
    ],
)

_REPRESENTATION = [
    _field(
        "representation",
        _TEXT,
        "experts (also of controls), hidden state, input embedding, word vectors or sentence encoder",
    ),
    _field("model", _TEXT, "the model, or the name of the word vectors or the encoder"),
    _field("revision", _TEXT, "the model's revision", nullable=True),
    _field("concept_set", _TEXT, "concept set that it comes from"),
    _field("pooling", _TEXT, "pooling of the activations", nullable=True),
    _field("layer", pa.int32(), "layer, null for all of them", nullable=True),
    _field("site", _TEXT, "kind of site, null for all of them", nullable=True),
    _field("measure", _TEXT, "jaccard, overlap, dice, containment, spearman, kl or (centred) cosine"),
    _field("threshold", pa.float64(), "experts have an AP strictly above it", nullable=True),
    _field("top", pa.int64(), "or: experts are so many neurons with the highest AP", nullable=True),
]

_PLACE = ",".join(field.name for field in _REPRESENTATION)
"""The key of one representation."""

SIMILARITY = _schema(
    f"{_PLACE},concept_a,concept_b",
    [
        *_REPRESENTATION,
        _field("concept_a", _TEXT, "one concept; it sorts before the other, but in containment and kl"),
        _field(
            "concept_b",
            _TEXT,
            "the other concept; containment is the share of a's that b has, kl is -KL(a || b)",
        ),
        _field("similarity", pa.float64(), "null where too few experts leave it undefined", True),
        _field("n_a", pa.int64(), "experts of concept_a", nullable=True),
        _field("n_b", pa.int64(), "experts of concept_b", nullable=True),
        _field("n_shared", pa.int64(), "experts of both", nullable=True),
    ],
)

ALIGNMENT = _schema(
    f"{_PLACE},human_set,agreement",
    [
        *_REPRESENTATION,
        _field("human_set", _TEXT, "name of the human data set"),
        _field("agreement", _TEXT, "spearman, kendall or pearson; triplets: the share predicted"),
        _field("n_pairs", pa.int64(), "pairs (triplets) compared: the same for all of a human set"),
        _field(
            "n_undefined", pa.int64(), "pairs without any expert: their similarity counts as 0", True
        ),
        _field("n_concepts", pa.int64(), "concepts in these pairs"),
        _field("rho", pa.float64(), "the agreement; null where all similarities are equal", True),
        _field("ci_low", pa.float64(), "lower end of its 95% interval", nullable=True),
        _field("ci_high", pa.float64(), "upper end; null where it cannot be had", nullable=True),
        _field("ci_by", _TEXT, "jackknife, concept-bootstrap or pair-bootstrap (docs/method.md)"),
        _field("p", pa.float64(), "two-sided, by permuting the concepts (Mantel)", nullable=True),
        _field("q", pa.float64(), "p corrected over layers, sites and thresholds", nullable=True),
        _field("ceiling", pa.float64(), "how well people agree with people", nullable=True),
        _field("ceiling_source", _TEXT, "where that is from", nullable=True),
        _field("reference", _TEXT, "the baseline that the difference is to", nullable=True),
        _field("difference", pa.float64(), "rho less that of the reference", nullable=True),
        _field("difference_low", pa.float64(), "lower end of its 95% interval", nullable=True),
        _field("difference_high", pa.float64(), "upper end of its 95% interval", nullable=True),
    ],
)

RELIABILITY = _schema(
    "model,revision,concept_set,pooling,measure,threshold",
    [
        _MODEL,
        _REVISION,
        _CONCEPT_SET,
        _POOLING,
        _field("measure", _TEXT, "measure of similarity"),
        _field("threshold", pa.float64(), "experts have an AP strictly above it"),
        _field("n_pairs", pa.int64(), "pairs of concepts"),
        _field("rho", pa.float64(), "Spearman correlation of the two halves' similarities", True),
        _field("ci_low", pa.float64(), "lower end of its 95% interval", nullable=True),
        _field("ci_high", pa.float64(), "upper end", nullable=True),
        _field("of_all", pa.float64(), "rho for twice the sentences (Spearman-Brown)", nullable=True),
        _field("stability", pa.float64(), "mean Jaccard of a concept's experts of both halves", True),
    ],
)

HUMAN_PAIRS = _schema(
    "human_set,concept_a,concept_b",
    [
        _field("human_set", _TEXT, "name of the human data set"),
        _field("concept_a", _TEXT, "one concept; its name sorts before the other's"),
        _field("concept_b", _TEXT, "the other concept"),
        _field("score", pa.float64(), "mean human score, on the data set's own scale"),
    ],
)

HUMAN_TRIPLETS = _schema(
    "human_set,number",
    [
        _field("human_set", _TEXT, "name of the human data set"),
        _field("number", pa.int64(), "number of the triplet, in the order of the file"),
        _field("concept_a", _TEXT, "one of the two that people kept"),
        _field("concept_b", _TEXT, "the other; its name sorts after the first's"),
        _field("odd", _TEXT, "the one that they found least like the others"),
    ],
)

HUMAN_DROPPED = _schema(
    "human_set,number",
    [
        _field("human_set", _TEXT, "name of the human data set"),
        _field("number", pa.int64(), "number of what was left out"),
        _field("words", pa.list_(pa.string()), "the pair or triplet, or an item with all its pairs"),
        _field("reason", _TEXT, "why it was left out"),
    ],
)

HIERARCHY_SUMMARY = _schema(
    _PLACE,
    [
        *_REPRESENTATION,
        _field("n_concepts", pa.int64(), "concepts that have a domain"),
        _field("n_domains", pa.int64(), "domains with two concepts or more"),
        _field("auc", pa.float64(), "chance that two of a domain are more alike than two of two", True),
        _field("auc_low", pa.float64(), "lower end of its 95% interval", nullable=True),
        _field("auc_high", pa.float64(), "upper end", nullable=True),
        _field("cophenetic", pa.float64(), "correlation of the tree's distances with the given", True),
        _field("purity", pa.float64(), "dendrogram purity", nullable=True),
        _field(
            "triplets", pa.float64(), "share of triplets that the tree joins as the domains do", True
        ),
        _field("recovered", pa.float64(), "share of members most like their own domain's name", True),
        _field("recovered_by_chance", pa.float64(), "its mean with members permuted", nullable=True),
        _field("recovered_p", pa.float64(), "how often that is as high", nullable=True),
        _field("n_members", pa.int64(), "members whose domain names a concept", nullable=True),
        _field("n_neurons", pa.int64(), "neurons that are experts of some concept", nullable=True),
        _field("n_shared", pa.int64(), "of these, experts of several concepts", nullable=True),
        _field("one_domain", pa.float64(), "share of these whose concepts are all of one domain", True),
        _field("one_domain_by_chance", pa.float64(), "its mean with domains permuted", nullable=True),
        _field("one_domain_p", pa.float64(), "how often that is as high", nullable=True),
    ],
)

HIERARCHY_DOMAINS = _schema(
    f"{_PLACE},domain",
    [
        *_REPRESENTATION,
        _field("domain", _TEXT, "a domain whose name is a concept too"),
        _field("n_members", pa.int64(), "its other concepts"),
        _field("of_domain", pa.float64(), "share of the domain's experts that a member has", True),
        _field("of_domain_by_chance", pa.float64(), "its median over pseudo-domains", nullable=True),
        _field("of_domain_p", pa.float64(), "share of pseudo-domains as high", nullable=True),
        _field("of_members", pa.float64(), "share of the members' experts that the domain has", True),
        _field("of_members_by_chance", pa.float64(), "its median over pseudo-domains", nullable=True),
        _field("of_members_p", pa.float64(), "share of pseudo-domains as high", nullable=True),
    ],
)

HIERARCHY_CUTS = _schema(
    f"{_PLACE},clusters",
    [
        *_REPRESENTATION,
        _field("clusters", pa.int64(), "clusters that the tree is cut into"),
        _field("rand", pa.float64(), "adjusted Rand index with the domains"),
        _field("information", pa.float64(), "normalised mutual information with the domains"),
        _field("purity", pa.float64(), "share of concepts of their cluster's commonest domain"),
    ],
)

HIERARCHY_MERGES = _schema(
    f"{_PLACE},merge",
    [
        *_REPRESENTATION,
        _field("merge", pa.int64(), "number of the merge, the closest first"),
        _field("concepts_a", pa.list_(pa.string()), "concepts below one branch"),
        _field("concepts_b", pa.list_(pa.string()), "concepts below the other"),
        _field("distance", pa.float64(), "mean of 1 - similarity between them"),
    ],
)

RUNS = _schema(
    "run",
    [
        _field("run", _TEXT, "fingerprint of the stage: the column `run` of the other tables"),
        _field("stage", _TEXT, "kind of the stage"),
        _field("label", _TEXT, "what it was run for"),
        _field("params", _TEXT, "its parameters, as JSON"),
        _field("seconds", pa.float64(), "how long it took, in seconds"),
        _field("finished", _TEXT, "when it was done, in UTC"),
        _field("files", pa.int64(), "its files"),
        _field("bytes", pa.int64(), "size of its files, in bytes"),
        _field("dropped", pa.int64(), "files of it that were deleted on purpose"),
    ],
)
