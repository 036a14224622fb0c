"""The verb `embed`: one vector for each scan, which scans are alike, and what the vectors tell."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.checks.scan_views import draw_views
from selfvox.data.naming import printable
from selfvox.data.preparation.prepare_case import Rejected
from selfvox.data.preparation.recipe import recipe_of_card
from selfvox.data.properties import is_number, read_properties
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError, did_you_mean
from selfvox.evaluation.embedding_files import NEIGHBOURS, PROBES, TABLE, VECTORS
from selfvox.evaluation.embeddings import (
    Probe,
    distances,
    plane,
    probe_property,
)
from selfvox.models.build import load_encoder
from selfvox.prediction.embed_scan import embed_crops
from selfvox.prediction.scan_loop import ScanWork, all_cases, process_scans
from selfvox.prediction.work_record import Workplace
from selfvox.reports.embedding_map import draw_map
from selfvox.reports.scan_sheet import write_sheets
from selfvox.runs.atomic_files import atomic_write, write_csv
from selfvox.runs.device import make_fabric
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.log_file import log_to
from selfvox.runs.progress import echo
from selfvox.runs.stop_signals import stop_on_signal
from selfvox.settings.verbs import Embed

REJECTED = "rejected.csv"
_LISTED = 8  # neighbours of a query


@dataclasses.dataclass
class _Embeddings:
    """The vectors of scans, as they come."""

    cases: list[Case] = dataclasses.field(default_factory=list)
    crops: list[np.ndarray] = dataclasses.field(default_factory=list)  # (crop, width) of each scan
    starts: list[np.ndarray] = dataclasses.field(default_factory=list)  # (crop, axis) of each scan
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def vectors(self) -> np.ndarray:
        """(scan, width): the maximum over the crops, as an encoder's own over a map."""
        return np.stack([crops.max(0) for crops in self.crops])

    @property
    def ids(self) -> list[str]:
        return [case.id for case in self.cases]


def embed(settings: Embed) -> Path:
    """Embed scans, and write vectors, table, map, neighbours and probes.

    Returns:
        The file of the vectors.

    Raises:
        UsageError: `out` has embeddings already, or an option does not fit the scans.
        DataError: there is no scan, or at least one could not be read; the others were embedded.
        WeightsError: the run has no intact encoder.
    """
    if (settings.out / VECTORS).exists():
        raise UsageError(f"{settings.out}: contains embeddings already; name another --out")
    encoder, card = load_encoder(settings.run)
    recipe = recipe_of_card(card, "the encoder")
    cases = all_cases(
        settings.scans, settings.source, settings.out, recipe, "the encoder was trained on"
    )
    properties = read_properties(cases, settings.scans, settings.by, settings.table)
    query = None if settings.query is None else _find_query(cases, settings.query)
    fabric = make_fabric(settings.device, 1, settings.precision)
    fabric.to_device(encoder)
    encoder.eval()
    slice_axis = SLICE_AXES[card.slices] if card.slices else None
    found = _Embeddings()

    def work(scan: ScanWork) -> None:
        image = torch.from_numpy(scan.prepared.data)
        crops, starts = embed_crops(encoder, fabric, image, card.crop, slice_axis)
        found.cases.append(scan.case)
        found.crops.append(crops if settings.crops else crops.max(0, keepdims=True))
        found.starts.append(starts)
        if query is not None:
            found.pictures[scan.case.id] = draw_views(scan.image, scan.prepared.geometry)

    settings.out.mkdir(parents=True, exist_ok=True)
    with (
        folder_lock(settings.out),
        log_to(settings.out / "log.txt"),
        stop_on_signal(settings.out),
    ):
        workplace = Workplace(settings.run.name, fabric.device)
        rejected: list[Rejected] = []
        process_scans(cases, len(cases), recipe, work, workplace, rejected, "embed")
        if found.cases:
            vectors = found.vectors()
            apart = distances(vectors)
            _write_vectors(settings, found, vectors)
            _write_table(settings.out, found, vectors, apart, properties)
            _measure_properties(settings.out, found, vectors, properties)
            if query is not None and query.id in found.ids:
                _write_neighbours(settings.out, found, apart, query)
        if rejected:
            rows = [[scan.id, scan.file, scan.reason] for scan in rejected]
            write_csv(settings.out / REJECTED, ["id", "file", "reason"], rows)
            raise DataError(
                f"{settings.out}: {len(rejected)} of {len(cases)} scans could not be embedded, see "
                f"{REJECTED} there; repair or remove them"
            )
    if not settings.by and query is None:
        echo("scans most like one of them: --query ID; what the vectors tell: --by COLUMN")
    return settings.out / VECTORS


def _find_query(cases: Sequence[Case], query: str) -> Case:
    """The case that is named by its id, its file or its subject."""
    for case in cases:
        file = Path(case.file).name
        names = {case.id, case.subject, case.file, file, file.partition(".")[0]}
        if query in names or Path(query).resolve() in {path.resolve() for path in case.images}:
            return case
    nearest = did_you_mean(query, [case.id for case in cases])
    raise UsageError(f"query: no scan is called {printable(query)}{nearest}")


def _write_vectors(settings: Embed, found: _Embeddings, vectors: np.ndarray) -> None:
    """Write the vectors, with those of the crops on request."""
    arrays = {"id": np.array(found.ids), "vector": vectors}
    if settings.crops:
        counts = [len(crops) for crops in found.crops]
        arrays |= {
            "crop_id": np.repeat(arrays["id"], counts),
            "crop_start": np.concatenate(found.starts),
            "crop_vector": np.concatenate(found.crops),
        }
    path = settings.out / VECTORS
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # an option of savez has a name, too
    scans, width = vectors.shape
    echo(f"{path}: {scans} scans, {width} features each")


def _write_table(
    out: Path,
    found: _Embeddings,
    vectors: np.ndarray,
    apart: np.ndarray,
    properties: dict[str, dict[str, str]],
) -> None:
    """Write ids, subjects, places on the map and the nearest scan; draw the map."""
    points, shares = plane(vectors)
    to_others = apart + np.diag(np.full(len(apart), np.inf))
    several = len(found.cases) > 1
    rows = []
    for number, case in enumerate(found.cases):
        nearest = int(to_others[number].argmin())
        rows.append(
            [
                case.id,
                case.file,
                case.subject,
                *points[number],
                found.ids[nearest] if several else "",
                float(to_others[number, nearest]) if several else None,
                *(values.get(case.id, "") for values in properties.values()),
            ]
        )
    header = ["id", "file", "subject", "x", "y", "nearest", "distance", *properties]
    write_csv(out / TABLE, header, rows)
    values = {
        name: [by_id.get(case, "") for case in found.ids] for name, by_id in properties.items()
    }
    draw_map(points, shares, values, out / "map.png")
    echo(f"table: {out / TABLE}   map: {out / 'map.png'}")


def _measure_properties(
    out: Path, found: _Embeddings, vectors: np.ndarray, properties: dict[str, dict[str, str]]
) -> None:
    """Probe each property, print the scores, and write them by group."""
    probes: dict[tuple[str, str], Probe] = {}  # by property and what the groups differ in
    for name, values in properties.items():
        known = [number for number, case in enumerate(found.ids) if case in values]
        of_known = [values[found.ids[number]] for number in known]
        subjects = [found.cases[number].subject for number in known]
        probe = probe_property(vectors[known], of_known, subjects) if known else None
        if probe is None:
            echo(f"{name}: each of its values needs at least two persons to be probed")
            continue
        probes[name, name] = probe
        for other in sorted(properties.keys() - {name}):
            groups = [properties[other].get(found.ids[number], "") for number in known]
            named = [group for group in groups if group]
            if len(set(named)) > 1 and not is_number(named):
                probes[name, other] = probe.by(groups)
    if not probes:
        return
    rows = []
    table = Table(box=SIMPLE, title="A linear probe, cross-validated over persons")
    for heading in ("property", "scans", "score", "chance", "groups", "largest gap"):
        table.add_column(heading)
    for (name, by), probe in probes.items():
        scores = "  ".join(f"{group} {score:.2f}" for group, score in probe.groups.items())
        table.add_row(
            Text(name if by == name else f"{name} by {by}"),
            str(probe.scans),
            f"{probe.score:.2f} ({probe.measure})",
            f"{probe.chance:.2f}",
            Text(scores),
            f"{probe.largest_gap:.2f}",
        )
        common = [name, by, probe.measure, probe.scans]
        rows.append([*common, "", probe.score, probe.chance, probe.largest_gap])
        rows += [[*common, group, score, None, None] for group, score in probe.groups.items()]
    of_probe = ["property", "groups by", "score of", "scans"]
    header = [*of_probe, "group", "score", "chance", "largest gap"]
    write_csv(out / PROBES, header, rows)
    Console(highlight=False, width=max(100, shutil.get_terminal_size().columns)).print(table)
    echo(f"probes: {out / PROBES}")


def _write_neighbours(out: Path, found: _Embeddings, apart: np.ndarray, query: Case) -> None:
    """List and draw the scans most like the query, which comes first."""
    to_query = apart[found.ids.index(query.id)]
    order = [
        number for number in np.argsort(to_query, kind="stable") if found.ids[number] != query.id
    ][:_LISTED]
    rows = [
        [rank, found.ids[number], found.cases[number].subject, float(to_query[number])]
        for rank, number in enumerate(order, start=1)
    ]
    write_csv(out / NEIGHBOURS, ["rank", "id", "subject", "distance"], rows)
    shown = [query.id, *(found.ids[number] for number in order)]
    captions = {query.id: query.id} | {row[1]: f"{row[0]}: {row[1]}, {row[3]:.2f}" for row in rows}
    pictures = write_sheets(
        out / "neighbours",
        {case: found.pictures[case] for case in shown},
        captions,
        {query.id},
    )
    echo(f"most like {printable(query.id)}: {', '.join(printable(case) for case in shown[1:])}")
    echo(f"table: {out / NEIGHBOURS}   picture: {pictures[0]}")
