"""S2L in order: the eight stages of a run, each as it declares itself in its own folder.

prepare       input rows -> parts of tokens; what cannot be used is rejected with a reason
reference     a small model is fine-tuned on the whole pool, and T checkpoints of it are kept
trajectories  the loss of every example at every checkpoint: a point in T dimensions
clusters      k-means groups the trajectories; examples in a cluster have similar gradients
selection     clusters are sampled evenly, smallest first; the subset of any budget is a prefix
target        the large model is fine-tuned on the subset alone
evaluation    the target is judged on held-out rows
report        one page that shows all of it

To add a stage, declare it in a folder of its own and give it a row here.
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
NAMES = tuple(stage.name for stage in STAGES)
