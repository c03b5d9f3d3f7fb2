/* The stepper's view: draws a run of minivllm's scheduler, snapshot by snapshot, and sends intents.
 *
 * It knows nothing about where snapshots come from: a transport passes its messages to a
 * StepperSession (minivllm/stepper/session.py), be that in a kernel, in a worker, or nowhere (a
 * recording). What a snapshot holds is written down in minivllm/runs/snapshot.py.
 *
 * Everything that comes from outside becomes text through `textContent` or `append`, never markup.
 */

export { checkScenario, fromFragment, toFragment } from "./links.js";
export { mount } from "./stepper.js";
