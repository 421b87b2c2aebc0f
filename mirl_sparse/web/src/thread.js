// A thread of an engine (engine.js): a Web Worker, classic or module, that does its share of the work until
// it is terminated.
onmessage = ({ data: { module, memory, stack } }) => {
  const outOfMemory = () => {
    throw new Error("memory ran out");
  };
  /** @type {Record<string, any>} */
  let exports;
  try {
    const mirl = { progress: () => 0, out_of_memory: outOfMemory };
    exports = new WebAssembly.Instance(module, { env: { memory }, mirl }).exports;
    exports.__stack_pointer.value = stack;
    exports.__wasm_init_tls(stack); // thread-local memory follows the stack
  } catch (error) {
    postMessage(`a thread cannot start: ${error}`);
    return;
  }
  postMessage("ready");
  try {
    exports.mirl_web_thread();
  } catch {
    exports.mirl_web_thread_failed();
  }
};
