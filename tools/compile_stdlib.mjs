/* node compile_stdlib.mjs FOLDER MARK: Python's standard library with its modules compiled, by Pyodide itself.
 *
 * Pyodide's python_stdlib.zip has sources alone, and starting compiles a hundred and fifty of them, each
 * time: most of its start. This adds x.pyc beside x.py for what starting imports, and what minivllm and
 * Plotly import. Writes FOLDER/python_stdlib.zip anew, with the comment MARK.
 */
import fs from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const folder = resolve(process.argv[2]);
const archive = join(folder, "python_stdlib.zip");
const { loadPyodide } = await import(pathToFileURL(join(folder, "pyodide.mjs")).href);
const python = await loadPyodide({ indexURL: `${folder}/` });
python.FS.writeFile("/tmp/sources.zip", fs.readFileSync(archive));
python.globals.set("mark", process.argv[3]);
python.runPython(`
import importlib, sys, zipfile
from importlib._bootstrap_external import _code_to_hash_pyc

MORE = """ast calendar csv datetime decimal difflib email.parser encodings.cp437 fractions gzip hashlib hmac html
    http.server ipaddress mimetypes numbers pkgutil platform pprint queue quopri random secrets shlex
    statistics timeit traceback unicodedata urllib.parse uuid webbrowser"""
for name in MORE.split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # not in this Pyodide
home = next(path for path in sys.path if path.endswith(".zip"))
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
used = {f"{file.removesuffix('.pyc').removesuffix('.py')}.py" for file in files}
with zipfile.ZipFile("/tmp/sources.zip") as old:
    with zipfile.ZipFile("/tmp/compiled.zip", "w", zipfile.ZIP_DEFLATED) as new:
        new.comment = mark.encode()

        def add(name, data):
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)

        for name in old.namelist():
            if name.endswith(("/", ".pyc")):
                continue
            source = old.read(name)
            add(name, source)
            if f"{home}/{name}" in used:
                code = compile(source, f"{home}/{name}", "exec", dont_inherit=True)
                # A hash that nobody checks: Python asks for no source's time.
                add(f"{name}c", bytes(_code_to_hash_pyc(code, bytes(8), checked=False)))
`);
fs.writeFileSync(`${archive}.new`, python.FS.readFile("/tmp/compiled.zip"));
fs.renameSync(`${archive}.new`, archive);
