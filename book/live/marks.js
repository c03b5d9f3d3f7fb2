/* What the judge of this browser's pages has said so far: part → {points, out_of}. */

const MARKS = "minivllm-marks";

export const marks = () => {
  try {
    return JSON.parse(localStorage.getItem(MARKS)) ?? {};
  } catch {
    return {};
  }
};

/** Keep a verdict: the newest counts, as in a notebook. */
export const keepVerdict = ({ part, points, out_of: outOf }) => {
  try {
    localStorage.setItem(MARKS, JSON.stringify({ ...marks(), [part]: { points, outOf } }));
  } catch {
    /* storage is off: the page shows its verdicts all the same */
  }
};

export const forgetMarks = () => localStorage.removeItem(MARKS);
