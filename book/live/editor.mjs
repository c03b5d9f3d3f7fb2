/* The editor of a live cell: CodeMirror 6, from the site's own folder (tools/get_codemirror.py). */

import { autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap } from "./codemirror-autocomplete.js";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "./codemirror-commands.js";
import { bracketMatching, indentOnInput, indentUnit, syntaxHighlighting } from "./codemirror-language.js";
import { python } from "./codemirror-lang-python.js";
import { EditorState, Prec } from "./codemirror-state.js";
import { drawSelection, EditorView, highlightSpecialChars, keymap } from "./codemirror-view.js";
import { classHighlighter } from "./lezer-highlight.js";

const language = python();

/** Ask the session what may follow; it answers from its objects, the language from its keywords. */
const completions = (complete) => async (context) => {
  const word = context.matchBefore(/[\w.]+/);
  if (!context.explicit && (!word || /^\d/.test(word.text))) return null;
  const answer = await complete(context.state.sliceDoc(0, context.pos));
  if (!answer) return null;
  return { from: answer.start, options: answer.options, validFor: /^\w*$/ };
};

/** For two seconds Tab leaves the editor, also where Escape has closed a list. */
const leaveByTab = (view) => {
  view.setTabFocusMode(2000);
  return false;
};

/** An editor of Python.
 *
 * `onRun("stay" | "next")`: Ctrl-Enter and Shift-Enter; `complete(text)`: what may follow a text.
 */
export const makeEditor = ({ parent, text, label, onChange, onRun, complete }) => {
  const run = (how) => () => {
    onRun(how);
    return true;
  };
  const view = new EditorView({
    parent,
    state: EditorState.create({
      doc: text,
      extensions: [
        keymap.of([
          { key: "Mod-Enter", run: run("stay") },
          { key: "Shift-Enter", run: run("next") },
        ]),
        Prec.highest(keymap.of([{ key: "Escape", run: leaveByTab }])),
        history(),
        highlightSpecialChars(), // code from a link reads as it runs: marks that turn the line are shown
        drawSelection(),
        bracketMatching(),
        closeBrackets(),
        indentOnInput(),
        indentUnit.of("    "),
        language,
        language.language.data.of({ autocomplete: completions(complete) }),
        autocompletion({ icons: false }),
        syntaxHighlighting(classHighlighter),
        keymap.of([...closeBracketsKeymap, ...completionKeymap, ...defaultKeymap, ...historyKeymap, indentWithTab]),
        EditorView.contentAttributes.of({
          "aria-label": `${label}. Shift-Enter runs it; Escape, then Tab leaves the editor.`,
          tabindex: "0",
          spellcheck: "false",
          autocapitalize: "off",
        }),
        EditorView.updateListener.of((update) => update.docChanged && onChange(update.state.doc.toString())),
      ],
    }),
  });
  return {
    get text() {
      return view.state.doc.toString();
    },
    set text(value) {
      view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: value } });
    },
    focus: () => view.focus(),
    element: view.dom,
  };
};
