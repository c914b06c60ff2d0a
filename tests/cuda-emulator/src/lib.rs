//! Stands in for CUDA's driver: the functions of `libcuda` that the runtime calls, upon the PTX emulator.
//!
//! A test gives the library the name `libcuda.so.1` in a folder of its own and starts a compiled file with
//! `LD_LIBRARY_PATH` set to it. Everything happens when it is asked for. What a driver leaves unchecked is an error
//! here: copies that are not within one allocation, memory that was freed, handles that were destroyed, anything after
//! a kernel has failed. What the emulator finds is also said on standard error, since a driver's codes say little.
//!
//! | variable | the GPU |
//! |---|---|
//! | `CUDA_EMULATOR_GPUS` | how many there are: 1 |
//! | `CUDA_EMULATOR_CAPABILITY` | compute capability: 90 |
//! | `CUDA_EMULATOR_DRIVER` | version of CUDA: 12080 |
//! | `CUDA_EMULATOR_MEMORY` | bytes: 2^32 |
//! | `CUDA_EMULATOR_REFUSES` | its assembler takes no module whose text holds this |
//! | `CUDA_EMULATOR_FAILS` | the launch of this number, from 1, fails as a wrong address does |

mod driver;
mod state;
