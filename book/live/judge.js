/* The judge of an exercise's page, as the graded cells' `check` has it on a reader's own machine: it
 * never runs the reader's code, which has a worker of its own that is ended when it loops. See
 * book/live/minivllm_judge.py.
 */

import { PagePython } from "./python.js";

const JUDGE_SECONDS = 60; // as minivllm/grading/judge.py
const SLOWER = 2; // than the processor seconds that an answer has elsewhere

export class Judge {
  #judge = new PagePython();
  #child = new PagePython();

  /** Load both, so that the first check need not wait. */
  async start() {
    await this.#judge.start();
    await this.#child.start();
  }

  /** The verdict on a question of `check` (JSON text): `{part, passed, points, out_of, text, …}`. */
  async verdict(text) {
    const question = JSON.parse(text);
    const replies = {};
    await this.#judge.start();
    for (;;) {
      let answer;
      try {
        answer = await this.#judge.send("judge", { text, replies }, JUDGE_SECONDS * 1000);
      } catch (error) {
        if ("refused" in question) throw error;
        await this.#judge.start(); // it was ended: say so in its own words
        const refused = `Judging this answer took longer than ${JUDGE_SECONDS} s: is a number in it too large?`;
        return this.verdict(JSON.stringify({ part: question.part, refused }));
      }
      if (!answer.ask) return answer;
      replies[answer.ask] = await this.#told(answer.ask, answer.limits);
    }
  }

  /** What became of the reader's code. */
  async #told(ask, limits) {
    await this.#child.start();
    try {
      return await this.#child.send("child", { text: ask }, SLOWER * limits.seconds * 1000);
    } catch (error) {
      const status = /does not answer/.test(error.message) ? "time" : -9;
      return { status, told: "null", printed: "" };
    }
  }
}
