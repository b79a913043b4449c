"""S2L from beginning to end: the table of the eight stages of a run, in order.

prepare       turn input rows into parts of tokens; reject unusable rows, each with a reason
reference     fine-tune a small model on the whole pool, and save T checkpoints of it
trajectories  compute the loss of every example at every checkpoint: a point in T dimensions
clusters      group the trajectories by k-means; examples in a cluster have similar gradients
selection     sample clusters evenly, smallest first; the subset of any budget is a prefix
target        fine-tune the large model on the subset alone
evaluation    measure the target on held-out rows
report        show all of it on one page

To add a stage, write its declaration in a folder of its own and add it to the table here.
"""

from s2l_ray.artifacts.stage import Stage
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.data.declaration import PREPARE
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.report.declaration import REPORT
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.training.declaration import REFERENCE, TARGET
from s2l_ray.trajectories.declaration import TRAJECTORIES

STAGES: tuple[Stage, ...] = (
    PREPARE,
    REFERENCE,
    TRAJECTORIES,
    CLUSTERS,
    SELECTION,
    TARGET,
    EVALUATION,
    REPORT,
)
"""All stages, earlier ones first."""
NAMES = tuple(stage.name for stage in STAGES)
"""Their names, in the same order."""
