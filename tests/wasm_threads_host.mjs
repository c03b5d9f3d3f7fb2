/* Holds the page's kernels with threads, for tests/wasm_host.py: node wasm_threads_host.mjs MODULE THREADS
 * INITIAL_PAGES MAX_PAGES.
 *
 * Standard input has messages as JSON, after their size in four bytes: a call [name, ...numbers] is answered
 * by a double; ["write", address, size] has the bytes after it; ["read", address, size] is answered by them.
 */
import { readFileSync, readSync, writeSync } from "node:fs";
import { Worker } from "node:worker_threads";

const [file, threads, initial, maximum] = process.argv.slice(2);
const module = new WebAssembly.Module(readFileSync(file));
const memory = new WebAssembly.Memory({ initial: Number(initial), maximum: Number(maximum), shared: true });
const { exports } = new WebAssembly.Instance(module, { env: { memory } });
exports._initialize();

const HELPER = `
  const { module, memory, stack } = require("node:worker_threads").workerData;
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  exports.help();`;
for (let i = 1; i < threads; i += 1) {
  new Worker(HELPER, { eval: true, workerData: { module, memory, stack: exports.new_stack() } });
}
while (exports.num_threads() < threads) await new Promise((resolve) => setTimeout(resolve, 5));

const take = (size) => {
  const bytes = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const count = readSync(0, bytes, filled, size - filled);
    if (count === 0) process.exit();
    filled += count;
  }
  return bytes;
};

const give = (bytes) => {
  for (let written = 0; written < bytes.length; ) written += writeSync(1, bytes, written);
};

for (;;) {
  const [name, ...numbers] = JSON.parse(take(take(4).readUInt32LE()).toString());
  const [address, size] = numbers;
  if (name === "write") new Uint8Array(memory.buffer, address, size).set(take(size));
  else if (name === "read") give(Buffer.from(new Uint8Array(memory.buffer, address, size)));
  else {
    const answer = Buffer.alloc(8);
    answer.writeDoubleLE(exports[name](...numbers) ?? 0);
    give(answer);
  }
}
