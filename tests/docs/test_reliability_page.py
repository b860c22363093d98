from tests.docs.pages import ROOT, rows, section
from tests.faults import test_kill, test_lossy_mount, test_power, test_real_disk
from tests.faults.replaying import Loss
from tests.faults.spoiled import TROUBLES
from tests.world import test_seeds

PAGE = ROOT / "docs" / "reliability.md"


def test_the_page_says_how_much_is_tried() -> None:
    """The numbers on the page are those that the tests go by."""
    moments = sum(test_power.CUTS.values())
    assert dict(rows(section(PAGE, "## How much is tried"))) == {
        "states that a power cut may leave": str(moments * len(Loss)),
        "moments of the power cuts": str(moments),
        "power cuts below a running service, where file systems may be mounted": str(
            test_lossy_mount.CUTS + test_real_disk.CUTS
        ),
        "kills at a random moment": str(test_kill.ROUNDS + test_kill.BACKLOG_ROUNDS),
        "kills between two named steps": str(len(test_kill.DEATHS)),
        "troubles with the disk, each at the first call, the second, and so on until none is left to fail": str(
            len(TROUBLES)
        ),
        "bugs planted into the service that the power cuts must find": str(len(test_power.PLANTED)),
        "random stories in a simulated world": str(test_seeds.SEEDS),
    }
