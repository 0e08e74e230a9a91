"""Show one query of a run: its text, its target's rank, its first images."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("query_id")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1, 50), help="How many images to list.")
def show(run: Path, query_id: str, top: int) -> None:
    """Show the query QUERY_ID of the finished RUN."""
    import difflib

    from cirbench.reports.checks import check_arrays, check_queries
    from cirbench.reports.collect import rows_of
    from cirbench.reports.explorer import hits
    from cirbench.runs.record import Record
    from cirbench.types import CirbenchError

    record = Record(run)
    check_queries(record)
    check_arrays(record, len(record.queries), len(record.gallery))
    place = {str(q["id"]): n for n, q in enumerate(record.queries)}
    if query_id not in place:
        near = difflib.get_close_matches(query_id, place, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise CirbenchError(
            f"{record.name} has no query {query_id!r}.{guess} Its {len(place)} ids are in {run / 'queries.jsonl'}."
        )
    query = record.queries[place[query_id]]
    click.echo(f"query      {query_id}" + (f"  ({query['group']})" if query.get("group") else ""))
    click.echo(f"reference  {query['reference']}")
    for text in query["texts"]:
        click.echo(f"text       {text}")
    more = query["targets_total"] - len(query["targets"])
    click.echo(f"target     {', '.join(query['targets']) or 'hidden'}" + (f" and {more} more" if more > 0 else ""))
    for name, scored in record.run.protocols.items():
        for row in (rows_of(record, name) == place[query_id]).nonzero()[0]:
            rank, ties = record.rankings[f"rank/{name}"][row], record.rankings[f"ties/{name}"][row]
            where = f"rank {rank}" if rank else "no target in the gallery"
            click.echo(f"{name}: {where} of {scored.gallery}" + (f", {ties} ties" if ties else ""))
    if record.explain.get(query_id, {}).get("words"):
        click.echo("weighs     " + " ".join(f"{word} ({x:.2f})" for word, x in record.explain[query_id]["words"]))
    protocol = record.run.default_protocol
    form = record.run.protocols[protocol].form
    rows = (rows_of(record, protocol) == place[query_id]).nonzero()[0]
    if f"top/{form}" not in record.rankings or not len(rows):
        return
    row = int(rows[0])
    (right,) = hits(record, protocol, record.gallery, [(row, query)], top)
    scores = record.rankings[f"top_score/{form}"][row]
    for n, image in enumerate(record.rankings[f"top/{form}"][row][:top]):
        if image >= 0:
            click.echo(f"{n + 1:4d}  {scores[n]:9.5f}  {'*' if n in right else ' '} {record.gallery[image]}")
