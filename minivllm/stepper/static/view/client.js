/* What the stepper asks of a session (minivllm/stepper/session.py), wherever that runs. */

const STEPS_A_MESSAGE = 200; // so that a long way is shown as it is made

/**
 * @typedef {Object} Transport
 * @property {(message: object) => Promise<object>} send  a message to the session, its answer back
 * @property {{live: boolean, lookahead?: number, size?: number, reason?: string, fixed?: boolean,
 *   prompts?: boolean, start?: (onProgress: (loaded: number, total: number) => void) => Promise<void>}} capabilities
 *   `live`: messages are answered now; `start`: makes it live; `lookahead`: steps to fetch ahead of
 *   the reader; `size`: bytes that `start` loads; `reason`: why it can never be live; `fixed`: it
 *   steps on, but cannot go back and no knob can be turned; `prompts`: requests are added as text
 * @property {(callback: (error: Error) => void) => void} [onDeath]  called when the session is lost
 */

/** The session's other end: intents go out one after the other, and runs take the answers. */
export class Client {
  #queue = Promise.resolve();

  /**
   * @param {Transport} transport
   * @param {(error: Error) => void} onError  told of what went wrong in a piece of work
   */
  constructor(transport, onError) {
    this.transport = transport;
    this.onError = onError;
    this.state = transport.capabilities.live ? "on" : "off";
  }

  get isLive() {
    return this.state === "on";
  }

  get canRunLive() {
    return this.isLive || (Boolean(this.transport.capabilities.start) && this.state !== "starting");
  }

  /** Make the session answer; throws if it does not come to life. */
  async start(onProgress) {
    this.state = "starting";
    await this.transport.capabilities.start(onProgress);
    this.state = "on";
  }

  async send(message) {
    const answer = await this.transport.send(message);
    if (!answer.ok) throw Object.assign(new Error(answer.errors.map((e) => e.message).join(" ")), { errors: answer.errors });
    return answer;
  }

  /** One piece of work after the other; a failed one says why and leaves things as they were. */
  enqueue(work) {
    this.#queue = this.#queue.then(work).catch((error) => {
      if (this.isLive) this.onError(error);
    });
    return this.#queue;
  }

  /** Do an intent's work in its turn; its errors, if the session refuses it. */
  async attempt(work) {
    let errors = [];
    await this.enqueue(async () => {
      try {
        await work();
      } catch (error) {
        errors = error.errors ?? [{ field: "", message: error.message }];
      }
    });
    return errors;
  }

  /** Ask for steps until each run has `length` of them or is over. */
  async grow(runs, length) {
    for (const run of runs) {
      while (!run.isOver && run.steps.length < length) {
        const before = run.steps.length;
        const count = Math.min(length - before, STEPS_A_MESSAGE);
        run.take(await this.send({ type: "step", branch: run.name, count }));
        if (run.steps.length === before) break;
      }
    }
  }

  /** Let `message` count from step `length` on: what lies ahead is dropped, unless it has happened. */
  async intervene(run, length, message) {
    if (!this.transport.capabilities.fixed && run.steps.length > length) {
      run.take(await this.send({ type: "rewind", branch: run.name, step: length }));
    }
    run.take(await this.send({ ...message, branch: run.name }));
  }
}
