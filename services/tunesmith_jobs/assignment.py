"""The command that starts an attempt: everything its node has to know."""

from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.tables import AttemptRow


def assign(change: JobChange, attempt: AttemptRow) -> None:
    """Tells each of an attempt's nodes to start its part."""
    for node in attempt.gpus:
        change.command(attempt, "assign", assignment(change.job, attempt, node), node)


def assignment(job: jobs_pb2.Job, attempt: AttemptRow, node: str) -> node_events_pb2.NodeCommand:
    """Returns the command to start a node's part of `attempt`, from the job's newest checkpoint."""
    nodes = list(attempt.gpus)
    spec = spec_pb2.JobSpec()
    spec.CopyFrom(job.spec)
    # An evaluation or export may leave it to its targets.
    spec.base_model = spec.base_model or job.base_model.name.rpartition("/")[2]
    assign = node_events_pb2.AssignAttempt(
        spec=spec,
        spec_digest=job.spec_digest,
        base_model_digest=job.base_model.digest,
        dataset_digest=job.dataset.digest,
        prompt_template_digest=job.prompt_template.digest,
        checkpoint_digest=job.checkpoint.digest,
        checkpoint_step=job.checkpoint.step,
        gpus=attempt.gpus[node],
        display_name=job.display_name,
        samples=job.samples,
        forked=bool(job.checkpoint.digest) and job.checkpoint.digest == job.forked_from.digest,
        accept_drift=job.accept_drift,
        micro_batch_divisor=job.micro_batch_divisor,
        nodes=nodes,
        node_rank=nodes.index(node),
        rendezvous=attempt.rendezvous,
        targets=job.targets,
    )
    return node_events_pb2.NodeCommand(assign=assign)
