"""The section `resources`: what holds for all stages on a cluster."""

from pydantic import NonNegativeFloat

from s2l_ray.config.section import Section


class ResourcesConfig(Section):
    """What a run does where the cluster has no room for it yet."""

    wait: NonNegativeFloat = 600.0
    """Seconds that a stage waits for room for its fewest workers, before the run ends with what it
    asked for and what the cluster has; so does a training whose workers were lost. An autoscaler
    may need minutes to add a node."""
