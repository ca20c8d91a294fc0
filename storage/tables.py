"""Every table and view of a store: file, key, columns, types and meaning, defined once.

`storage.database` makes the views from it, `storage.store.commit` checks nulls and keys, and
`storage.tables_doc` writes docs/tables.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from storage.store.commit import KEY

Columns = Sequence[pa.Field]


@dataclass(frozen=True)
class View:
    """A view: what it holds, its key columns (unique within a run) and its other columns.

    `joined` are columns that the view adds to the stored ones. With `has_run` it also has the column
    `run`, the fingerprint of the stage that wrote the row.
    """

    name: str
    meaning: str
    key: Columns
    values: Columns
    joined: Columns = ()
    has_run: bool = True

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the stored rows, with the key as metadata."""
        listed = {column.name for column in self.values}
        columns = [*(column for column in self.key if column.name not in listed), *self.values]
        return pa.schema(columns, {KEY: ",".join(column.name for column in self.key).encode()})


@dataclass(frozen=True)
class Table(View):
    """A view of stored rows: a file of a stage, or all files in a folder of it.

    Files of earlier versions lack the columns `added`, which are null in the view.
    """

    stage: str = ""
    file: str = ""
    added: Sequence[str] = ()

    def matches(self, schema: pa.Schema) -> bool:
        """Whether a file with these columns is of this version or an earlier one."""
        earlier = [column for column in self.schema if column.name not in self.added]
        return bool(schema.equals(self.schema) or schema.equals(pa.schema(earlier)))


TABLES: dict[str, Table] = {}
"""The stored tables by the names of their views."""


def _table(
    path: str,
    meaning: str,
    key: Columns,
    *values: pa.Field,
    name: str = "",
    joined: Columns = (),
    added: Sequence[str] = (),
) -> Table:
    """A table stored as STAGE/FILE; the view is named after the file by default."""
    stage, _, file = path.partition("/")
    name = name or file.removesuffix(".parquet").replace("-", "_")
    table = Table(name, meaning, key, values, joined, stage=stage, file=file, added=added)
    return TABLES.setdefault(name, table)


def _view(name: str, meaning: str, key: Columns, *values: pa.Field, has_run: bool = True) -> View:
    return View(name, meaning, key, values, has_run=has_run)


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"meaning": meaning})


def _optional(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return _column(name, kind, meaning).with_nullable(True)


def _interval(name: str) -> list[pa.Field]:
    return [
        _optional(f"{name}_low", _FLOAT, "lower bound of its 95% CI"),
        _optional(f"{name}_high", _FLOAT, "upper bound of its 95% CI; null if undefined"),
    ]


_TEXT, _INT, _INT32, _FLOAT, _FLOAT32 = (pa.string(), pa.int64(), pa.int32(), pa.float64(), pa.float32())
_TEXTS = pa.list_(_TEXT)

_CONCEPT_SET = _column("concept_set", _TEXT, "the concept set: its name, @, first digits of its hash")
_MODEL = _column("model", _TEXT, "the model, as named in the sweep file")
_REVISION = _column("revision", _TEXT, "the model's revision, as named in the sweep file")
_CONCEPT = _column("concept", _TEXT, "name of the concept")
_SENTENCE_ID = _column("sentence_id", _INT, "index of the sentence in its concept set, from 0")
_POOLING = _column(
    "pooling",
    _TEXT,
    "max, mean or last: over all tokens; concept: the last token of the word (max over its occurrences; "
    "mean of hidden states); concept-max: max over all its tokens; context: over the others; before: "
    "over those before it",
)
_LAYER = _column("layer", _INT32, "index of the layer, from 0")
_SITE = _column("site", _TEXT, "site in the layer, for example mlp.hidden")
_UNIT = _column("unit", _INT32, "index of the unit (neuron) in the site, from 0")
_AP = _column("ap", _FLOAT, "average precision for the concept, at the reference prevalence")
_THRESHOLD = _column("threshold", _FLOAT, "experts have an AP strictly above it")
_ATTRIBUTION = _column(
    "attribution", _FLOAT, "estimated change in log P(word), in nats, if clamped to on_p50"
)
_HUMAN_SET = _column("human_set", _TEXT, "name of the human data set")
_CONTROL = _column(
    "control",
    _TEXT,
    "half 1, half 2, length-matched, pseudo-concepts, count-matched (the concepts with as many "
    "positives as their pseudo-concepts), shuffled, masked or NAME latents",
)

_RUN_KEY = [_MODEL, _REVISION, _CONCEPT_SET]
_SITE_KEY = [*_RUN_KEY, _LAYER, _SITE, _POOLING]
_RANK = _column("rank", _INT32, "1: the highest activation")
_UNIT_KEY = [_CONCEPT, _LAYER, _SITE, _UNIT]

CONCEPTS = _table(
    "sentences/concepts.parquet",
    "The concepts of each concept set.",
    [_CONCEPT_SET, _CONCEPT],
    _optional("domain", _TEXT, "domain (superordinate category) of the concept"),
    _optional("sense", _TEXT, "intended sense: a WordNet sense or a definition"),
    _optional("pos", _TEXT, "part of speech of the concept's word"),
    _column("n_sentences", _INT, "number of positive sentences of the concept"),
)

SENTENCES = _table(
    "sentences/sentences.parquet",
    "The sentences of each concept set, with their provenance.",
    [_CONCEPT_SET, _SENTENCE_ID],
    _column("text", _TEXT, "the sentence"),
    _optional("source", _TEXT, "source of the sentence"),
    _optional("prompt", _TEXT, "kind of text requested: fact or story"),
    _optional("generator", _TEXT, "the model that generated it"),
    _optional("revision", _TEXT, "the generator's revision"),
    _optional("seed", _INT, "seed of its generation or sampling"),
    _column("flags", _TEXTS, "quality flags; empty if flagged sentences were dropped"),
)

MEMBERSHIPS = _table(
    "sentences/memberships.parquet",
    "Which sentences are positives and negatives of which concept.",
    [
        _CONCEPT_SET,
        _SENTENCE_ID,
        _optional("concept", _TEXT, "name of the concept; null for the role pool: negative for all"),
    ],
    _column("role", _TEXT, "positive (the sentence is about the concept), negative or pool"),
    _column("spans", pa.list_(_INT32), "start and end of each occurrence of the word, in characters"),
)

DROPPED = _table(
    "sentences/dropped.parquet",
    "Sentences that the quality filter dropped, by concept and reason.",
    [_CONCEPT_SET, _CONCEPT, _column("reason", _TEXT, "reason given by the quality filter")],
    _column("dropped", _INT, "number of sentences dropped for this reason"),
    _column("example", _TEXT, "the first of these sentences"),
)

SITES = _table(
    "activations/sites.parquet",
    "The sites whose activations were recorded.",
    _SITE_KEY,
    _column("width", _INT32, "number of units in the site"),
    _optional("module", _TEXT, "path of the module in the layer; empty: the layer itself"),
    _optional("part", _TEXT, "what is read of it: input, output, experts or logits"),
    added=("module", "part"),
)

ACTIVATION_FILES = _table(
    "activations/files.parquet",
    "The files of raw activations.",
    [*_SITE_KEY, _column("first", _INT, "sentence_id of the first sentence in the file")],
    _column("sentences", _INT, "number of sentences in the file"),
    _column("path", _TEXT, "path of the file, relative to the stage's folder"),
    name="activation_files",
)

MISSING_STATES = _table(
    "activations/missing-states.parquet",
    "Sentences of a concept without a hidden state at its word (pooling concept): no token is the last "
    "of an occurrence, apart from the first position. Their state in `activations` is 0, and left out "
    "of means; only of activations that are kept.",
    [*_RUN_KEY, _SENTENCE_ID],
    name="missing_states",
)

CONCEPT_TOKENS = _table(
    "activations/concept-tokens.parquet",
    "The concepts' words in each model's vocabulary.",
    [*_RUN_KEY, _CONCEPT],
    _column("n_tokens", _INT, "tokens of the concept's word inside a sentence; 0 if it has none"),
)

N_TOP_SENTENCES = 5

TOP_SENTENCES = _table(
    "activations/top-sentences",
    f"The {N_TOP_SENTENCES} sentences with the highest activations of every expert neuron; only of "
    "activations that were scored and not kept.",
    [*_RUN_KEY, _POOLING, _LAYER, _SITE, _UNIT, _RANK],
    _SENTENCE_ID,
    _column("value", _FLOAT32, "the pooled activation"),
    name="top_sentences",
)

CONCEPT_STATES = _table(
    "activations/concept-states",
    "The hidden state after each layer, averaged over each concept's sentences that have one; only of "
    "activations that were scored and not kept.",
    [*_RUN_KEY, _POOLING, _LAYER, _CONCEPT],
    _column("vector", pa.list_(_FLOAT), "mean hidden state"),
    name="concept_states",
)

EXPERTS = _table(
    "experts/experts",
    "Expert neurons of each concept. `attribution` is null unless the stage `attributions` was run, and "
    "at the site mlp.router.",
    [*_RUN_KEY, _POOLING, *_UNIT_KEY],
    _AP,
    _column("ap_raw", _FLOAT, "average precision with unweighted sentences"),
    _column("auroc", _FLOAT, "area under the ROC curve"),
    _column("on_p50", _FLOAT32, "median activation on the concept's positives"),
    _column("on_p90", _FLOAT32, "90th percentile of the activation on the positives"),
    _column("off_mean", _FLOAT32, "mean activation on the concept's negatives"),
    joined=(_ATTRIBUTION,),
)

CHANCE_COUNTS = _table(
    "experts/chance",
    "AP of a site's neurons for each concept, with true and with permuted labels.",
    [
        *_RUN_KEY,
        *(_POOLING, _LAYER, _SITE, _CONCEPT),
        _column("shuffle", _INT32, "0: true labels; from 1: labels permuted over the sentences"),
    ],
    _column("best_ap", _FLOAT, "highest AP of the site's neurons"),
    _column("n_above", pa.list_(_INT), "neurons with an AP above 0, 0.05, 0.1, ... 0.95"),
    name="chance_counts",
)

N_TOKEN_EXPERTS = 3

TOP_TOKENS = _table(
    "top_tokens/top-tokens",
    f"The {N_TOP_SENTENCES} sentences with the highest activations of the {N_TOKEN_EXPERTS} experts of "
    "each concept and pooling with the highest AP, and in each the token of the maximum, for poolings "
    "that are maxima; not of random weights. The columns of the token are null if the sentence has none "
    "for the pooling, or its value was another one when it was read again.",
    [*_RUN_KEY, _POOLING, _LAYER, _SITE, _UNIT, _RANK],
    _SENTENCE_ID,
    _column("value", _FLOAT32, "the pooled activation"),
    _optional("token_index", _INT32, "index of the token in the model's input, from 0"),
    _optional("token", _TEXT, "its characters in the sentence, without spaces at both ends"),
    _optional("char_start", _INT32, "first character of these in the sentence, from 0"),
    _optional("char_end", _INT32, "first character after them"),
    name="top_tokens",
)

SCORED_CONCEPTS = _table(
    "experts/scored-concepts.parquet",
    "The order of the concepts in the files of `scores` and `auroc`.",
    [_column("number", _INT, "index of the concept in the files of scores, from 0")],
    _CONCEPT,
)

_REPRESENTATION = [
    _column(
        "representation",
        _TEXT,
        "experts (of a control: experts, CONTROL), hidden state, input embedding, word vectors, "
        "sentence encoder (of the word: sentence encoder, word alone), bag of words, context words, "
        "same domain",
    ),
    _column("model", _TEXT, "the model, or the name of the word vectors or the sentence encoder"),
    _optional("revision", _TEXT, "the model's revision"),
    _column("concept_set", _TEXT, "the concept set of the model's sentences"),
    _optional("pooling", _TEXT, "pooling of the activations"),
    _optional("layer", _INT32, "layer; null for all layers together"),
    _optional("site", _TEXT, "site; null for all sites together"),
    _column(
        "measure",
        _TEXT,
        "of experts: jaccard, overlap, dice or containment; of all neurons: auroc, auroc-halves, "
        "centred cosine, spearman or kl; of vectors: (centred, standardized) cosine; of domains: label",
    ),
    _THRESHOLD.with_nullable(True),
    _optional("top", _INT, "instead of a threshold: experts are this many neurons with the highest AP"),
]

SIMILARITY = _table(
    "similarity/similarity.parquet",
    "Similarity of every pair of concepts in each representation.",
    [
        *_REPRESENTATION,
        _column("concept_a", _TEXT, "first concept, A to Z; containment and kl have both orders"),
        _column("concept_b", _TEXT, "second; containment: share of a's experts in b; kl: -KL(a || b)"),
    ],
    _optional("similarity", _FLOAT, "similarity; null if undefined, as for lack of experts"),
    _optional("n_a", _INT, "number of experts of concept_a"),
    _optional("n_b", _INT, "number of experts of concept_b"),
    _optional("n_shared", _INT, "number of experts of both"),
)

ALIGNMENT = _table(
    "alignment/alignment.parquet",
    "Agreement of each representation with each human data set.",
    [
        *_REPRESENTATION,
        _HUMAN_SET,
        _column(
            "agreement",
            _TEXT,
            "spearman, kendall, pearson, cka or whitened; for triplets, odd-one-out accuracy",
        ),
        _column(
            "subset",
            _TEXT,
            "all; or of whole models: within domains, between domains, one-token words",
        ),
    ],
    _column("n_pairs", _INT, "pairs (triplets) compared: the same for all rows of a human set, subset"),
    _optional("n_undefined", _INT, "pairs whose similarity is undefined (no experts); it counts as 0"),
    _column("n_concepts", _INT, "concepts in these pairs"),
    _optional("rho", _FLOAT, "value of the agreement; null if all similarities are equal"),
    *_interval("ci"),
    _column("ci_by", _TEXT, "jackknife, concept-bootstrap or pair-bootstrap (docs/method.md)"),
    _optional("p", _FLOAT, "two-sided p-value by permuting the concepts (Mantel test, docs/method.md)"),
    _optional(
        "q", _FLOAT, "p corrected over all rows of the human set and agreement (false discovery rate)"
    ),
    _optional("ceiling", _FLOAT, "noise ceiling: agreement of people, on all pairs; null for subsets"),
    _optional("ceiling_source", _TEXT, "source of the noise ceiling"),
    _optional("reference", _TEXT, "the first baseline in `alignment_differences`"),
    _optional("difference", _FLOAT, "rho minus the reference's rho"),
    *_interval("difference"),
)

ALIGNMENT_DIFFERENCES = _table(
    "alignment/differences.parquet",
    "Agreement of each representation less that of reference baselines, on the same pairs.",
    [*ALIGNMENT.key, _column("reference", _TEXT, "the baseline, such as glove-50 word vectors")],
    _column("difference", _FLOAT, "rho minus the reference's rho"),
    *_interval("difference"),
    name="alignment_differences",
)

CONTROL_EXPERTS = _table(
    "controls/experts",
    "Expert neurons found on control data.",
    [*_RUN_KEY, _POOLING, _CONTROL, *_UNIT_KEY],
    *EXPERTS.values,
    _CONTROL,
    name="control_experts",
)

ATTRIBUTIONS = _table(
    "attributions/attributions",
    "Gradient-based estimates of the effect of clamping each expert.",
    EXPERTS.key,
    _ATTRIBUTION,
    _column("attribution_odd", _FLOAT, "the same over prompts 1, 3, 5, ..."),
    _column("attribution_even", _FLOAT, "the same over prompts 2, 4, 6, ..."),
)

_DOSE = [
    _column(
        "selection",
        _TEXT,
        "which neurons: none; ap, ap-layer-0 (only of layer 0), ap-later (only of later layers), "
        "attribution; their controls are random, random-layer-0, random-later, random-attribution",
    ),
    _column(
        "intervention",
        _TEXT,
        "none; clamp: set to on_p50; dampen: multiply by 1 - 2 (auroc - 0.5), as AurA; ablate: set to "
        "0. Control neurons are shifted by constants to the same displacement",
    ),
    _column("k", _INT, "number of neurons"),
]
_DISPLACEMENT = _column(
    "displacement",
    _FLOAT,
    "how far what the sites write is moved on average (docs/steering.md); doses: mean over concepts",
)
_N_PROMPTS = _column("n_prompts", _INT, "number of neutral prompts")
_OTHERS = _optional("others", _FLOAT, "mean change in log P of other concepts' words, in nats")
_EFFECTS = [
    _column("change", _FLOAT, "mean change in log P of the concept's word, in nats"),
    *_interval("change"),
    _OTHERS,
    *_interval("others"),
    _optional("containing", _FLOAT, "share of continuations that contain the concept's word"),
    *_interval("containing"),
    _optional("in_sentences", _FLOAT, "mean change in log P of the word in the concept's sentences"),
    *_interval("in_sentences"),
    _optional(
        "log_perplexity",
        _FLOAT,
        "mean change in log perplexity, in nats per token, of other concepts' sentences",
    ),
    *_interval("log_perplexity"),
]
_DIFFERENCES = [
    field
    for name in ("change", "others", "containing", "in_sentences", "log_perplexity")
    for field in (
        _optional(
            f"{name}_difference",
            _FLOAT,
            f"{name} minus that of the control, paired by concept (and by prompt, after prompts)",
        ),
        *_interval(f"{name}_difference"),
    )
]

STEERING = _table(
    "steering/steering",
    "Effect of steering a concept's neurons, over all prompts and sentences.",
    [*_RUN_KEY, _POOLING, _CONCEPT, *_DOSE],
    _DISPLACEMENT,
    _N_PROMPTS,
    _column("n_sentences", _INT, "number of the concept's sentences in which its word is measured"),
    *_EFFECTS,
)

STEERING_DOSES = _table(
    "steering/doses.parquet",
    "Dose-response of steering (dose: k), over all concepts.",
    [*_RUN_KEY, _POOLING, *_DOSE],
    _column("n_concepts", _INT, "concepts with at least k neurons of the selection"),
    _DISPLACEMENT,
    _N_PROMPTS,
    *_EFFECTS,
    _optional(
        "n_compared",
        _INT,
        "concepts with at least k neurons of the selection and of its control: those of the differences",
    ),
    *_DIFFERENCES,
    _column("positive", _FLOAT, "share of concepts whose change is above 0"),
    name="steering_doses",
)

STEERING_PROMPTS = _table(
    "steering/prompts",
    "Effect of steering a concept's neurons after each prompt.",
    [*STEERING.key, _column("prompt", _TEXT, "the neutral prompt")],
    _column("log_p", _FLOAT, "log P of the concept's word after the prompt, in nats"),
    _column("change", _FLOAT, "log_p minus log_p of the unsteered model, in nats"),
    _OTHERS,
    _column("containing", _INT, "continuations that contain the concept's word"),
    _column("continuations", _TEXTS, "the model's continuations of the prompt"),
    name="steering_prompts",
)

STEERING_NEURONS = _table(
    "steering/neurons",
    "Effect of clamping single neurons.",
    EXPERTS.key,
    _AP,
    _ATTRIBUTION,
    _column("change", _FLOAT, "mean change in log P of the word, in nats, by clamping this neuron"),
    *_interval("change"),
    name="steering_neurons",
)

RELIABILITY = _table(
    "reliability/reliability.parquet",
    "Split-half reliability: experts from one half of the sentences vs. the other half.",
    [*_RUN_KEY, _POOLING, _column("measure", _TEXT, "measure of similarity"), _THRESHOLD],
    _column("n_pairs", _INT, "pairs of concepts"),
    _optional("rho", _FLOAT, "Spearman correlation of the two halves' similarities"),
    *_interval("ci"),
    _optional(
        "of_all",
        _FLOAT,
        "rho predicted for all sentences (Spearman-Brown); rho if not positive",
    ),
    _optional("stability", _FLOAT, "mean Jaccard index of a concept's experts in both halves"),
)

PSEUDO_CONCEPTS = _table(
    "pseudo_concepts/pseudo-concepts.parquet",
    "Experts of each concept vs. its pseudo-concept, another word, with equally many positives: the "
    "sentences with that word, and as many of the concept's, drawn at random.",
    [*_RUN_KEY, _POOLING, _CONCEPT, _THRESHOLD],
    _column("word", _TEXT, "the word of the pseudo-concept"),
    _column("n_positives", _INT, "number of positive sentences of either"),
    _column("n_experts", _INT, "number of experts of the pseudo-concept"),
    _optional("best_ap", _FLOAT, "highest AP for the pseudo-concept; null if none is above the floor"),
    _column("concept_n_experts", _INT, "number of experts of the concept, with as many positives"),
    _optional("concept_best_ap", _FLOAT, "highest AP for the concept; null if none is above the floor"),
    name="pseudo_concepts",
)

HUMAN_PAIRS = _table(
    "alignment/human-pairs.parquet",
    "The rated pairs whose words are concepts.",
    [
        _HUMAN_SET,
        _column("concept_a", _TEXT, "the concept of the pair whose name sorts first"),
        _column("concept_b", _TEXT, "second concept of the pair"),
    ],
    _column("score", _FLOAT, "mean human score, on the data set's own scale"),
)

HUMAN_TRIPLETS = _table(
    "alignment/human-triplets.parquet",
    "The odd-one-out judgments whose words are concepts.",
    [_HUMAN_SET, _column("number", _INT, "index of the triplet, in the order of the file")],
    _column("concept_a", _TEXT, "of the two judged most alike, the one whose name sorts first"),
    _column("concept_b", _TEXT, "the other one"),
    _column("odd", _TEXT, "the odd one out"),
)

HUMAN_DROPPED = _table(
    "alignment/human-dropped.parquet",
    "Human judgments that were left out.",
    [_HUMAN_SET, _column("number", _INT, "index of the omission")],
    _column("words", _TEXTS, "the pair, the triplet, or an item (with all its pairs)"),
    _column("reason", _TEXT, "reason for leaving it out"),
)

HIERARCHY_SUMMARY = _table(
    "hierarchy/summary.parquet",
    "How well each representation reflects the domains.",
    _REPRESENTATION,
    _column("n_concepts", _INT, "concepts with a domain"),
    _column("n_domains", _INT, "domains with at least two concepts"),
    _optional("auc", _FLOAT, "AUC of similarity, within- vs. between-domain pairs"),
    *_interval("auc"),
    _optional("cophenetic", _FLOAT, "cophenetic correlation with the distances"),
    _optional("purity", _FLOAT, "dendrogram purity"),
    _optional("triplets", _FLOAT, "share of triplets whose same-domain pair merges first"),
    _optional("recovered", _FLOAT, "share of members closest to their own domain's concept"),
    _optional("recovered_by_chance", _FLOAT, "its mean with permuted members"),
    _optional("recovered_p", _FLOAT, "p-value of the permutation test"),
    _optional("n_members", _INT, "members of domains whose name is a concept"),
    _optional("n_neurons", _INT, "neurons that are experts of at least one concept"),
    _optional("n_shared", _INT, "of these, experts of several concepts"),
    _optional("one_domain", _FLOAT, "share of these whose concepts are all of one domain"),
    _optional("one_domain_by_chance", _FLOAT, "its mean with permuted domains"),
    _optional("one_domain_p", _FLOAT, "p-value of the permutation test"),
    name="hierarchy_summary",
)

HIERARCHY_DOMAINS = _table(
    "hierarchy/domains.parquet",
    "Experts that a domain's concept shares with its members.",
    [*_REPRESENTATION, _column("domain", _TEXT, "a domain whose name is also a concept")],
    _column("n_members", _INT, "number of its other concepts"),
    _optional("of_domain", _FLOAT, "share of the domain concept's experts that a member has"),
    _optional("of_domain_by_chance", _FLOAT, "its median over pseudo-domains"),
    _optional("of_domain_p", _FLOAT, "(1 + pseudo-domains at least as high) / (1 + pseudo-domains)"),
    _optional("of_members", _FLOAT, "share of the members' experts that the domain concept has"),
    _optional("of_members_by_chance", _FLOAT, "its median over pseudo-domains"),
    _optional("of_members_p", _FLOAT, "(1 + pseudo-domains at least as high) / (1 + pseudo-domains)"),
    name="hierarchy_domains",
)

HIERARCHY_CUTS = _table(
    "hierarchy/cuts.parquet",
    "Clusters from cutting the dendrogram, compared with the domains.",
    [*_REPRESENTATION, _column("clusters", _INT, "number of clusters")],
    _column("rand", _FLOAT, "adjusted Rand index with the domains"),
    _column("information", _FLOAT, "normalized mutual information with the domains"),
    _column("purity", _FLOAT, "share of concepts in their cluster's majority domain"),
    name="hierarchy_cuts",
)

HIERARCHY_MERGES = _table(
    "hierarchy/merges.parquet",
    "The merges of the dendrogram.",
    [*_REPRESENTATION, _column("merge", _INT, "index of the merge, closest first")],
    _column("concepts_a", _TEXTS, "concepts of one branch"),
    _column("concepts_b", _TEXTS, "concepts of the other branch"),
    _column("distance", _FLOAT, "mean of 1 - similarity between them"),
    name="hierarchy_merges",
)

INPUT_EMBEDDINGS = pa.schema(
    [_CONCEPT, _column("vector", pa.list_(_FLOAT32), "mean input embedding of the name's tokens")],
    {KEY: b"concept"},
)
"""A file of the stage `activations` without a view."""

RUNS = _view(
    "runs",
    "Parameters, duration and size of each run, that is, of each completed stage.",
    [_column("run", _TEXT, "fingerprint of the stage: the column `run` of the other views")],
    _column("stage", _TEXT, "kind of the stage, for example experts"),
    _column("label", _TEXT, "label of the stage, for example the model"),
    _column("params", _TEXT, "its parameters, as JSON"),
    _column("seconds", _FLOAT, "duration in seconds"),
    _column("finished", _TEXT, "time of completion, in UTC"),
    _column("files", _INT, "number of files"),
    _column("bytes", _INT, "total size of its files, in bytes"),
    _column("dropped", _INT, "number of files that were deleted on purpose"),
    has_run=False,
)

EXPERT_PLACES = _view(
    "expert_places",
    "Distribution of the experts over layers and sites.",
    [*_RUN_KEY, _POOLING, _THRESHOLD, _LAYER, _SITE],
    _column("n_experts", _INT, "number of (concept, expert) pairs in the layer and site"),
    _column("share", _FLOAT, "their share of all such pairs of the model at this threshold"),
)

EXPERT_STABILITY = _view(
    "expert_stability",
    "Overlap of a concept's experts in two revisions of a model, if it has experts in one of them.",
    [
        _column("run_a", _TEXT, "run of the experts in revision_a"),
        _column("run_b", _TEXT, "run of the experts in revision_b"),
        *(_POOLING, _CONCEPT, _THRESHOLD),
    ],
    *(_MODEL, _CONCEPT_SET),
    _column("revision_a", _TEXT, "one revision; its name sorts before the other's"),
    _column("revision_b", _TEXT, "the other revision"),
    _column("n_a", _INT, "number of experts of the concept in revision_a"),
    _column("n_b", _INT, "number of experts of the concept in revision_b"),
    _column("n_shared", _INT, "number of experts in both"),
    _column("stability", _FLOAT, "Jaccard index of the two sets of experts"),
    has_run=False,
)

TRAINING = _view(
    "training",
    "Experts and alignment over training, for revisions named by a step.",
    [
        _column("run_experts", _TEXT, "run of the experts; `run` is the alignment's"),
        *(_POOLING, _THRESHOLD, _HUMAN_SET),
        *(ALIGNMENT.schema.field(name) for name in ("agreement", "measure")),
    ],
    *_RUN_KEY,
    _column("step", _INT, "training step, from the revision's name"),
    _column("n_experts", _FLOAT, "median number of experts per concept"),
    _column("revision_before", _TEXT, "the previous checkpoint"),
    _column(
        "stability",
        _FLOAT,
        "mean of `expert_stability` with it, over concepts with experts in one of the two",
    ),
    *(ALIGNMENT.schema.field(name) for name in ("n_pairs", "rho", "ci_low", "ci_high")),
)

CHANCE = _view(
    "chance",
    "Number of experts and best AP of each concept, vs. permuted labels.",
    [
        *(*_RUN_KEY, _POOLING, _CONCEPT),
        _column("threshold", _FLOAT, "experts have an AP strictly above it: 0, 0.05, ... 0.95"),
    ],
    _column("n_experts", _INT, "number of experts of the concept in the model"),
    _column("chance_mean", _FLOAT, "mean number of experts over the permutations"),
    _column("chance_p95", _FLOAT, "95th percentile of that number"),
    _column("p", _FLOAT, "(1 + permutations with at least as many) / (1 + permutations)"),
    _column("best_ap", _FLOAT, "highest AP of any neuron for the concept"),
    _column("best_chance_mean", _FLOAT, "mean highest AP over the permutations"),
    _column("best_chance_p95", _FLOAT, "95th percentile of the highest AP"),
    _column("best_p", _FLOAT, "(1 + permutations at least as high) / (1 + permutations)"),
    _column("shuffles", _INT, "number of permutations"),
)

QUERY_VIEWS = (EXPERT_PLACES, EXPERT_STABILITY, TRAINING, CHANCE)
"""Views that the queries of these names in storage/sql make from the tables, in this order."""

SCORES = _view(
    "scores",
    "AP of every neuron for every concept; only with `experts: {scores: true}`. The files hold one flat "
    "column, neuron by neuron: row r of a file with c concepts is concept r % c "
    "(`scored_concepts.number`) of unit r // c, counted from the unit in the file's name.",
    [*_RUN_KEY, _POOLING, _LAYER, _SITE, _UNIT, _CONCEPT],
    _column("ap", _FLOAT32, "average precision at the reference prevalence"),
)

AUROC = _view(
    "auroc",
    "AUROC of every neuron for every concept, within 0.00013; by default only of models whose AUROCs "
    "take at most 256 MB (`experts: {scores: auto}`). The files hold AUROC - 0.5 in float16, in the "
    "order of those of `scores`.",
    [*_RUN_KEY, _POOLING, _LAYER, _SITE, _UNIT, _CONCEPT],
    _column("auroc", _FLOAT32, "area under the ROC curve"),
)

ACTIVATIONS = _view(
    "activations",
    "The pooled activations. The files hold one flat column, neuron by neuron: row r of a file with n "
    "sentences from `first` is unit r // n and sentence first + r % n. Filter on model, revision, "
    "pooling, layer and site with literals (or variables, as in [queries.md](queries.md)), and DuckDB "
    "skips all other files. Runs whose activations were not kept, or deleted, have no rows; "
    "`runs.dropped` counts the deleted files.",
    [*_RUN_KEY, _POOLING, _LAYER, _SITE, _UNIT, _SENTENCE_ID],
    _column("value", _FLOAT32, "the pooled activation"),
)

VIEWS: tuple[View, ...] = (*TABLES.values(), RUNS, *QUERY_VIEWS, SCORES, AUROC, ACTIVATIONS)
