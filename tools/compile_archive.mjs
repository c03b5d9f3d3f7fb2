/* node compile_archive.mjs PYODIDE FROM TO [LEFT_OUT...]: a zip of modules, each compiled by Pyodide too.
 *
 * A page unpacks it and imports; what is compiled already (`__pycache__`) it need not compile each time.
 * Modules below a folder LEFT_OUT stay sources.
 */
import fs from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, from, to, ...leftOut] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(resolve(folder, "pyodide.mjs")).href);
const python = await loadPyodide({ indexURL: `${resolve(folder)}/` });
python.FS.writeFile("/tmp/from.zip", fs.readFileSync(from));
python.globals.set("left_out", python.toPy(leftOut));
python.runPython(`
import zipfile
from importlib._bootstrap_external import _code_to_hash_pyc
from importlib.util import cache_from_source

with zipfile.ZipFile("/tmp/from.zip") as old, zipfile.ZipFile("/tmp/to.zip", "w") as new:
    for name in old.namelist():
        data = old.read(name)
        new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        if name.endswith(".py") and not name.startswith(tuple(left_out)):
            code = compile(data, name, "exec", dont_inherit=True)
            # A hash that nobody checks: Python asks for no source's time.
            compiled = bytes(_code_to_hash_pyc(code, bytes(8), checked=False))
            new.writestr(zipfile.ZipInfo(cache_from_source(name)), compiled, zipfile.ZIP_DEFLATED)
`);
fs.writeFileSync(to, python.FS.readFile("/tmp/to.zip"));
