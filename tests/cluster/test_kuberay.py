"""KubeRay: every overlay is valid for it and closed, and Ray starts the right nodes for it."""

from functools import cache

import pytest
import yaml

from s2l_ray.config.load import load
from tests.cluster.manifests import (
    CLUSTER,
    OVERLAYS,
    ROOT,
    RUNS,
    built,
    groups,
    pods,
    ray_cluster,
)

CRDS = ROOT.parent / "shared" / "crds"
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
every_run = pytest.mark.parametrize("overlay", RUNS)


def closed(schema):
    """The schema with unknown fields refused, as the Kubernetes API server prunes them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: closed(value) for key, value in schema.items()}
    if (
        isinstance(schema.get("properties"), dict)
        and "x-kubernetes-preserve-unknown-fields" not in schema
    ):
        kept.setdefault("additionalProperties", False)
    return kept


@cache
def definition(kind):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=loader)["spec"]["versions"]  # noqa: S506 - a safe loader
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    return closed(schema)


def mistakes(item):
    jsonschema = pytest.importorskip("jsonschema")
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's definitions are not at {CRDS}")
    found = jsonschema.Draft202012Validator(definition(item["kind"])).iter_errors(item)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


@every_overlay
def test_an_overlay_is_valid_for_kuberay(overlay):
    (item,) = (item for item in built(overlay).values() if item["apiVersion"] == "ray.io/v1")
    assert mistakes(item) == []


@every_run
def test_the_cluster_of_a_rayjob_is_valid_by_itself(overlay):
    item = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}}
    assert mistakes({**item, "spec": ray_cluster(overlay)}) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("entrypoints", "python"),
        ("backoffLimit", "2"),
        ("rayClusterSpec", {"authOptions": {"mode": 1}}),
    ],
)
def test_a_mistake_in_a_rayjob_would_be_found(place, value):
    job = built("eks")["RayJob"]
    assert mistakes({**job, "spec": {**job["spec"], place: value}})


@every_run
def test_a_rayjob_keeps_the_rules_that_are_only_in_kuberays_code(overlay):
    """Those of ray-operator/controllers/ray/utils/validation.go in KubeRay 1.7."""
    job = built(overlay)["RayJob"]["spec"]
    rules = job["deletionStrategy"]["deletionRules"]
    assert job["submissionMode"] == "SidecarMode"
    assert not {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & job.keys()
    assert "shutdownAfterJobFinishes" not in job, "not together with rules of deletion"
    # DeleteWorkers is refused where Ray's autoscaler runs.
    assert {rule["policy"] for rule in rules} <= {"DeleteCluster", "DeleteSelf"}
    assert all(("jobStatus" in rule["condition"]) != ("jobDeploymentStatus" in rule["condition"])
               for rule in rules)  # fmt: skip
    assert {pod["spec"]["restartPolicy"] for pod in pods(overlay).values()} == {"Never"}


@every_overlay
def test_the_cluster_starts_with_a_head_that_takes_no_work(overlay):
    cluster = ray_cluster(overlay)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in groups(overlay).values():
        assert (group["minReplicas"], group["replicas"]) == (0, 0) < (group["maxReplicas"], 1)


@every_overlay
def test_no_container_is_root_or_without_limits(overlay):
    for pod in pods(overlay).values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert ray_cluster(overlay)["autoscalerOptions"]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@every_overlay
def test_workers_of_gpus_go_where_gpus_are_and_cannot_talk_to_kubernetes(overlay):
    for name, group in groups(overlay).items():
        spec = group["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        needs_gpus = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        assert needs_gpus == name.startswith("gpu")
        if needs_gpus:
            assert spec["nodeSelector"]
            taints = {toleration["key"] for toleration in spec["tolerations"]}
            assert "nvidia.com/gpu" in taints


@every_overlay
def test_the_network_is_closed_to_all_but_the_run_kuberay_and_prometheus(overlay):
    policy = built(overlay)["NetworkPolicy"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    assert all(
        labels.items() <= pod["metadata"]["labels"].items() for pod in pods(overlay).values()
    )
    own, *others = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert [[port["port"] for port in rule["ports"]] for rule in others] == [[8265], [8080]]
    ports = ray_cluster(overlay)["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert {port["name"]: port["containerPort"] for port in ports} == {
        "gcs-server": 6379,
        "dashboard": 8265,
        "metrics": 8080,
    }


@every_overlay
def test_access_comes_from_the_service_account_and_authentication_is_on(overlay):
    assert ray_cluster(overlay)["authOptions"] == {"mode": "token"}
    account = built(overlay)["ServiceAccount"]["metadata"]["name"]
    for pod in pods(overlay).values():
        assert pod["spec"]["serviceAccountName"] == account
        for variable in pod["spec"]["containers"][0]["env"]:
            is_secret = "secretKeyRef" in variable.get("valueFrom", {})
            assert is_secret or variable["name"] == "HF_HOME"


def node_types(overlay):
    """What Ray's autoscaler makes of a cluster, in its own words."""
    source = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    config = pytest.importorskip("ray.autoscaler.v2.instance_manager.config")
    derived = source._derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "s2l", "namespace": "s2l"}, "spec": ray_cluster(overlay)}
    )
    return config.AutoscalingConfig(derived, skip_content_hash=True).get_node_type_configs()


def started_for(overlay, num_gpus, *, refused=()):
    """The nodes that Ray's autoscaler starts for actors of one GPU, by type."""
    scheduler = pytest.importorskip("ray.autoscaler.v2.scheduler")
    util = pytest.importorskip("ray.autoscaler.v2.utils").ResourceRequestUtil
    demand = util.group_by_count([util.make({"CPU": 1, "GPU": 1}, [])] * num_gpus)
    reply = scheduler.ResourceDemandScheduler(None).schedule(
        scheduler.SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=node_types(overlay),
            max_num_nodes=100,
            resource_requests=demand,
            recoverable_resource_availabilities=dict.fromkeys(refused, 0.0),
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("overlay", ["eks", "gke", "aks", "standing"])
def test_ray_takes_spot_nodes_first_and_others_where_spot_was_refused(overlay):
    assert started_for(overlay, 5) == {"gpu-spot": 5}
    assert started_for(overlay, 9) == {"gpu-spot": 8, "gpu": 1}
    assert started_for(overlay, 5, refused=["gpu-spot"]) == {"gpu": 5}
    options = ray_cluster(overlay)["autoscalerOptions"]["env"]
    assert [option["name"] for option in options] == [
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    ]


def test_eight_gpus_of_a_node_serve_eight_workers():
    assert started_for("shared-files", 9) == {"gpu": 2}


@pytest.mark.parametrize(
    ("overlay", "scheme", "binding"),
    [
        ("eks", "s3://", "eks.amazonaws.com/role-arn"),
        ("gke", "gs://", "iam.gke.io/gcp-service-account"),
        ("aks", "abfs://", "azure.workload.identity/client-id"),
        ("shared-files", "/shared", None),
    ],
)
def test_the_configuration_names_the_store_whose_access_the_pods_have(overlay, scheme, binding):
    objects = built(overlay)
    assert objects["RayJob"]["spec"]["entrypoint"] == "python -m s2l_ray run /etc/s2l/run.yaml"
    run = load(CLUSTER / "kuberay" / "overlays" / overlay / "run.yaml")
    files = [*run.data.train, *run.data.files_of("heldout")]
    assert all(path.startswith(scheme) for path in [run.run_dir, *files])
    annotations = objects["ServiceAccount"]["metadata"].get("annotations", {})
    assert list(annotations) == ([binding] if binding else [])
    is_azure = {"azure.workload.identity/use": "true"}.items()
    for pod in pods(overlay).values():
        assert (is_azure <= pod["metadata"]["labels"].items()) == (overlay == "aks")


def test_the_driver_reads_the_configuration_of_the_overlay():
    objects = built("eks")
    head = pods("eks")["head"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    sources = {volume["name"]: volume.get("configMap") for volume in head["volumes"]}
    assert sources[mounted["/etc/s2l"]] == {"name": objects["ConfigMap"]["metadata"]["name"]}
    assert list(objects["ConfigMap"]["data"]) == ["run.yaml"]


def test_every_pod_mounts_the_shared_files():
    claim = built("shared-files")["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods("shared-files").values():
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        (name,) = (mount["name"] for mount in mounts if mount["mountPath"] == "/shared")
        (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == name)
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_collector_of_the_history_server_is_valid_for_kuberay(tmp_path):
    component = yaml.safe_load(
        (CLUSTER / "kuberay/components/history/kustomization.yaml").read_text(encoding="utf-8")
    )
    (patch,) = yaml.safe_load(component["patches"][0]["patch"])
    assert (patch["op"], patch["path"]) == ("add", "/spec/rayClusterSpec/historyServerOptions")
    job = built("eks")["RayJob"]
    cluster = {**job["spec"]["rayClusterSpec"], "historyServerOptions": patch["value"]}
    assert mistakes({**job, "spec": {**job["spec"], "rayClusterSpec": cluster}}) == []
