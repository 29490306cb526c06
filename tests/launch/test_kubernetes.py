"""The Kubernetes objects, by their schema and by what has to agree within them."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import parse_args

from finetune.entry import MISTAKEN, PREEMPTED
from finetune.recipes import read_recipe
from tests.launch.conftest import LAUNCH

FILE = LAUNCH / "kubernetes.yaml"
OBJECTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))}
POD = OBJECTS["Job"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.fixture
def launched() -> Any:
    """The launcher's arguments, as torchrun reads them."""
    assert CONTAINER["args"][:3] == ["python", "-m", "finetune.launch"]
    return parse_args(CONTAINER["args"][3:])


@pytest.mark.parametrize("kind", OBJECTS)
def test_it_is_of_its_schema(kind: str) -> None:
    for version in ("1.31", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_a_field_that_does_not_exist_would_be_found() -> None:
    wrong = {**OBJECTS["Job"], "spec": {**OBJECTS["Job"]["spec"], "restarts": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_pods_and_processes_are_as_many_as_are_waited_for(launched: Any) -> None:
    job = OBJECTS["Job"]["spec"]
    assert str(job["completions"]) == str(job["parallelism"]) == launched.nnodes
    assert str(CONTAINER["resources"]["limits"]["nvidia.com/gpu"]) == launched.nproc_per_node


def test_they_meet_at_the_first_pod(launched: Any) -> None:
    service, job = OBJECTS["Service"], OBJECTS["Job"]
    assert launched.rdzv_backend == "c10d"
    assert launched.rdzv_endpoint.split(":")[0] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert POD["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"


def test_the_recipe_is_one(launched: Any) -> None:
    assert (launched.module, launched.training_script) == (True, "finetune")
    assert read_recipe(launched.training_script_args).run.name == "fox"


def test_a_mistake_ends_the_job_and_a_preempted_pod_counts_for_nothing() -> None:
    rules = OBJECTS["Job"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {rule["onExitCodes"]["values"][0]: rule for rule in rules if "onExitCodes" in rule}
    assert {code: rule["action"] for code, rule in by_code.items()} == {MISTAKEN: "FailJob", PREEMPTED: "Ignore"}
    assert all(rule["onExitCodes"]["containerName"] == CONTAINER["name"] for rule in by_code.values())
    assert POD["restartPolicy"] == "Never"  # which a failure policy asks for


def test_the_launcher_gives_up_before_the_kubelet_does() -> None:
    (grace_s,) = (int(each["value"]) for each in CONTAINER["env"] if each["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert 60 <= grace_s < POD["terminationGracePeriodSeconds"]


def test_what_is_mounted_is_there_and_shared() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    claim = OBJECTS["PersistentVolumeClaim"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_it_has_no_rights_that_it_does_not_need() -> None:
    image = (Path(__file__).resolve().parents[2] / "docker" / "train.Dockerfile").read_text(encoding="utf-8")
    user = POD["securityContext"]["runAsUser"]
    assert f"USER {user}:{POD['securityContext']['runAsGroup']}" in image
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not CONTAINER["securityContext"]["allowPrivilegeEscalation"]
