"""The bill against the one that an ideal network would have given."""

from __future__ import annotations

from collections import defaultdict

from auditor.bill import Bill
from auditor.biller import bill as audit
from auditor.events import Batch, Event, Rules, Started, Stopped

from simulation.clean import in_order
from simulation.delivery import points_in
from simulation.shape import shape_of

# Whatever has one of these on record may be billed otherwise.
_MATTERS = {"late", "late_start", "late_stop", "conflict", "contradicted_stop", "vanished", "returned"}


def of_order(bill: Bill, events: list[Event]) -> tuple[int, list[str]]:
    """How many VMs could be compared, and where their bill is another than that of their points in order of time.

    Only where the rules never changed, and for VMs with one customer whose every point was taken and none vanished.
    """
    rules = [event.what for event in events if isinstance(event.what, Rules)]
    if len(rules) != 1:
        return 0, []
    left_out = {row["vm_id"] for row in bill.rows("anomalies") if row["kind"] in _MATTERS}
    buried = {row["sequence"] for row in bill.rows("dead_letters")}
    customers: defaultdict[str, set[str]] = defaultdict(set)
    for event in events:
        if isinstance(event.what, Batch | Started):
            customers[event.what.vm_id].add(event.what.customer_id)
        if event.sequence in buried and isinstance(event.what, Batch | Started | Stopped):
            left_out.add(event.what.vm_id)
    chosen = {vm_id for vm_id, names in customers.items() if len(names) == 1} - left_out
    points = {str(point): point for point in points_in(events) if point.vm_id in chosen}
    ideal = shape_of(audit(in_order(list(points.values()), rules[0])))
    differences = shape_of(bill).only(chosen).differences(ideal)
    return len(chosen), [f"not as in order of time: {difference}" for difference in differences]
