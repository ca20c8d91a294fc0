"""How well neurons and baselines agree with people: what the page says first."""

from __future__ import annotations

from typing import Any

from alignment.statistics.correlation import FEWEST_PAIRS
from alignment.statistics.resampling import FEWEST_SURE
from cluster.models.weights import RANDOM_INIT
from jobs.alignment import TRIPLETS
from jobs.page.figures.spec import BASELINE, CONTROL, NEURONS, Estimate, Estimates, Figure, Section
from jobs.page.study import Source, by_step
from jobs.page.wording import agrees, chance, count, differs, interval
from jobs.representations.embeddings import HIDDEN_STATE
from jobs.results.summary import INTERVALS, STATISTICS, SURE_OF_FEW, headline, is_chosen, is_shown
from jobs.similarity import EXPERTS

Row = dict[str, Any]


def aligned(source: Source) -> dict[tuple[str, str], list[tuple[str, Row]]]:
    """The labelled rows of each human set and kind of agreement, as the sweep prints them."""
    if not source.views:
        return {}
    view = source.view
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(source.ask("FROM alignment"), key=by_step):
        found.setdefault((row["human_set"], row["agreement"]), []).append(row)
    order = {name: place for place, name in enumerate(source.rated)}
    return {
        key: headline([row for row in found[key] if is_shown(row, view.measure)], view.threshold)
        for key in sorted(found, key=lambda key: (order.get(key[0], len(order)), key))
    }


def closely(rows: list[tuple[str, Row]], source: Source) -> Row | None:
    """The row of the view that the page looks at closely."""
    view = source.view
    wanted = (EXPERTS, view.model, view.revision, view.pooling, None, None)
    for _, row in rows:
        names = ("representation", "model", "revision", "pooling", "layer", "site")
        if tuple(row[name] for name in names) == wanted:
            return row
    return None


def section(source: Source) -> Section:
    """Alignment with each human set."""
    missing = []
    if without := _without(source):
        missing.append(
            f"No alignment with {', '.join(without)}: fewer than {FEWEST_PAIRS} rated pairs are of the "
            "concepts that all models and baselines have, or all scores are equal. More concepts, or "
            "another set of human data, gives one."
        )
    missing += [
        f"{label}: it failed, so nothing of it is here; `neuralign status STORE` says why. Running the "
        "sweep again tries it again."
        for label in source.absent
    ]
    by_set = aligned(source)
    if not by_set:
        missing.append(
            "No alignment with people in this store: name human data (`human:` in the sweep file) and "
            "run the sweep to its end."
        )
    elif not any(row["representation"] == "word vectors" for rows in by_set.values() for _, row in rows):
        missing.append("No word vectors to compare with: `baselines: [glove]` in the sweep file.")
    figures = [_figure(key, rows, source) for key, rows in by_set.items() if rows]
    lead = []
    if figures:
        (key, rows) = next(iter(by_set.items()))
        lead = _sentences(key[0], rows, source)
        if any(rows[0][1]["n_concepts"] < FEWEST_SURE for rows in by_set.values() if rows):
            lead.append(
                f"Of fewer than {FEWEST_SURE} concepts, here and below, a 95% interval may be somewhat "
                f"too narrow or too wide: of 100 such studies, {SURE_OF_FEW} would have the truth in it."
            )
    return Section("alignment", "Do the neurons agree with people?", lead, figures, missing=missing)


def _without(source: Source) -> list[str]:
    """Human sets that the sweep names and that have no alignment."""
    named = [
        name for each in source.runs if each.kind == "alignment" for name in each.params.get("human", {})
    ]
    there = {row["human_set"] for row in source.ask("SELECT DISTINCT human_set FROM alignment")}
    return [name for name in named if name not in there]


def _sentences(human_set: str, rows: list[tuple[str, Row]], source: Source) -> list[str]:
    """What it means, in plain words."""
    row = closely(rows, source)
    if row is None:
        return []
    said = [agrees(f"Similarity by shared experts in {source.view.label}", row, _people(human_set))]
    difference = differs(row)
    if difference:
        said.append(difference)
    for label, other in rows:
        same = (row["pooling"], other["representation"]) == (other["pooling"], EXPERTS)
        if row["revision"] != RANDOM_INIT and other["revision"] == RANDOM_INIT and same:
            said.append(agrees(f"The control ({label})", other, "people"))
        if is_chosen(label, other) and other["representation"] == HIDDEN_STATE:
            told = interval(other["rho"], other["ci_low"], other["ci_high"])
            said.append(f"The {label}, chosen on these very pairs and so flattered, reaches {told}.")
    if row["ceiling"] is not None:
        said.append(f"People agree with people by {row['ceiling']:.2f} ({row['ceiling_source']}).")
    said.append(f"Numbers are {STATISTICS[row['agreement']]}, with 95% intervals in brackets.")
    return said


def _people(human_set: str) -> str:
    return f"people (data set {human_set})"


def _figure(key: tuple[str, str], rows: list[tuple[str, Row]], source: Source) -> Figure:
    human_set, agreement = key
    first = rows[0][1]
    row = closely(rows, source)
    if row is None:
        finding = f"Agreement with {_people(human_set)}"
    else:
        finding = agrees(source.view.label, row, _people(human_set)).rstrip(".")
    things = TRIPLETS if agreement == TRIPLETS else "pairs"
    note = (
        f"{STATISTICS[agreement].capitalize()} with {human_set} on the same {first['n_pairs']:,} "
        f"{things} of {count(first['n_concepts'], 'concept')} in every row; experts: {source.view.cut}. "
        f"Bars: 95% intervals ({INTERVALS[first['ci_by']]}). Hollow: the best of several, chosen on "
        "these very pairs, so it is flattered."
    )
    names = {each["representation"] for _, each in rows}
    if any(name.startswith(f"{EXPERTS}, half") for name in names):
        note += " Half: experts found in half of the sentences."
    if HIDDEN_STATE in names:
        note += (
            " State: the hidden state after a layer, of a sentence's last token or the mean of all; "
            "*: less the mean over all concepts."
        )
    if first["ceiling"] is not None:
        note += f" Line: people with people, {first['ceiling']:.2f} ({first['ceiling_source']})."
    estimates = [
        Estimate(
            label,
            each["rho"],
            each["ci_low"],
            each["ci_high"],
            kind_of(each),
            is_chosen(label, each),
        )
        for label, each in rows
    ]
    marks = [] if first["ceiling"] is None else [("people with people", first["ceiling"])]
    axis = f"{STATISTICS[agreement]}, {first['n_pairs']:,} {things}"
    body = Estimates(estimates, axis, chance(first), marks)
    return Figure(f"alignment-{human_set}-{agreement}", finding, note, body)


def kind_of(row: Row) -> str:
    """Neurons, their controls, or a baseline."""
    if not row["representation"].startswith(EXPERTS):
        return BASELINE
    is_control = row["representation"] != EXPERTS or row["revision"] == RANDOM_INIT
    return CONTROL if is_control else NEURONS
