// Submits a job, follows it to its end, reads its curve: the whole client in one screen.
// node dist/drive.js ADDRESS TOKEN BASE_MODEL DATASET [STEPS]

import { randomUUID } from "node:crypto";
import { credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { CreateJobRequest, JobServiceClient, type Job, type WatchJobResponse } from "./gen/tunesmith/api/jobs/v1/jobs.js";
import { JobState, jobStateToJSON } from "./gen/tunesmith/api/jobs/v1/state.js";
import { MetricsServiceClient } from "./gen/tunesmith/api/metrics/v1/metrics.js";

const [address, token, baseModel, dataset, steps = "8"] = process.argv.slice(2);
if (!address || !token || !baseModel || !dataset) {
  console.error("usage: node dist/drive.js ADDRESS TOKEN BASE_MODEL DATASET [STEPS]");
  process.exit(2);
}

const metadata = new Metadata();
metadata.set("authorization", `Bearer ${token}`);
const jobs = new JobServiceClient(address, credentials.createInsecure());
const metrics = new MetricsServiceClient(address, credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 30_000 });

type Unary<Q, R> = (
  request: Q,
  metadata: Metadata,
  options: { deadline: number },
  callback: (error: ServiceError | null, response: R) => void,
) => unknown;

/** Turns a call with a callback into a promise. */
function ask<Q, R>(method: Unary<Q, R>, request: Q): Promise<R> {
  return new Promise((resolve, reject) => {
    method(request, metadata, deadline(), (error, response) => (error ? reject(error) : resolve(response)));
  });
}

/** Follows a job to its terminal state, across disconnects, from the last revision seen. */
async function follow(name: string): Promise<{ job: Job; states: string[] }> {
  const states: string[] = [];
  let fromRevision = 0;
  for (;;) {
    try {
      const stream = jobs.watchJob({ name, fromRevision }, metadata);
      for await (const message of stream as AsyncIterable<WatchJobResponse>) {
        fromRevision = message.revision;
        if (!message.job) continue;
        const state = jobStateToJSON(message.job.state).replace("JOB_STATE_", "");
        if (states.at(-1) !== state) states.push(state);
        if (message.job.terminal) return { job: message.job, states };
      }
    } catch (error) {
      if ((error as ServiceError).code !== status.UNAVAILABLE) throw error;
    }
  }
}

try {
  const request = CreateJobRequest.fromPartial({
    parent: "projects/default",
    requestId: randomUUID(),
    spec: {
      experiment: "node",
      baseModel,
      dataset,
      adapter: { lora: { r: 4 } },
      training: { maxSteps: Number(steps), learningRate: 0.01 },
      labels: { client: "node" },
    },
  });
  const { job: accepted } = await ask(jobs.createJob.bind(jobs), request);
  if (!accepted) throw new Error("the server accepted the job without returning it");
  const { job, states } = await follow(accepted.name);
  const curve = await ask(metrics.querySeries.bind(metrics), {
    parent: job.name,
    keys: ["train/loss"],
    minStep: 0,
    maxStep: 0,
    maxPoints: 0, reduction: 0, smoothing: 0, axis: 0,
  });
  const values = curve.series[0]?.values ?? [];
  console.log(
    JSON.stringify({
      job: job.displayName,
      states,
      succeeded: job.state === JobState.JOB_STATE_SUCCEEDED,
      failure: job.failure?.message ?? null,
      steps: curve.series[0]?.steps ?? [],
      first_loss: values[0] ?? null,
      last_loss: values.at(-1) ?? null,
      model_version: job.modelVersion,
    }),
  );
} catch (error) {
  const { code, details, message } = error as Partial<ServiceError> & Error;
  console.error(`error: ${code === undefined ? "" : `${status[code]}: `}${details ?? message}`);
  process.exitCode = 1;
}
jobs.close();
metrics.close();
