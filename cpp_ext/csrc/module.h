// Defines an empty Python module: importing it loads the library, which registers its kernels with PyTorch.
#pragma once

#include <Python.h>

#define NIWAKI_MODULE(name)                                       \
  PyMODINIT_FUNC PyInit_##name(void) {                            \
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, #name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, \
                                 nullptr};                        \
    return PyModule_Create(&module);                              \
  }
