"""launch/kubernetes.yaml against the schema that Kubernetes publishes."""

import subprocess
import sys

import pytest

from tests.cluster.conftest import ROOT

pytestmark = pytest.mark.cluster


def test_every_field_is_one_of_kubernetes() -> None:
    pytest.importorskip("kubernetes_validate", reason="100 MB of schemas: pip install kubernetes-validate")
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", ROOT / "launch" / "kubernetes.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
