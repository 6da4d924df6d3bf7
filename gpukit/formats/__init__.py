"""Files that gpukit reads and writes: GGUF and safetensors, every count checked before its use."""
