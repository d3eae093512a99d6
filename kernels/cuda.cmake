# The CUDA backend: whether it is built, for which GPUs, and of which files.
#
# COGSMITH_CUDA_ARCHS lists compute capabilities without the point. Each gets machine code; the
# first and the last also get PTX, which the driver compiles for GPUs that are not in the list.
# cuBLASLt and cuDNN are opened by the program when it first wants them (cuda_libraries.c); so is
# NCCL, which several ranks need (nccl_library.c).

# The files that the backend is chosen from.
string(CONCAT CUDA_SOURCES "/kernels/([a-z0-9_]+_cuda|cuda(_[a-z]+)?|cudnn_[a-z]+|"
  "comm_(cuda_none|nccl|nccl_none)|nccl_library)\\.cu?$")
# Attention as one operation is there from 9.13.1; up to 9.15 it needs help where the keys are no
# multiple of 128, which is nearly always.
set(LEAST_CUDNN 9.16.0)

# pip_folders(FOLDERS): those of NVIDIA's packages that pip installed for python3, which may have
# what the toolkit lacks.
function(pip_folders folders)
  execute_process(COMMAND python3 -c "import nvidia; print(*nvidia.__path__, sep=';')"
    OUTPUT_VARIABLE sites OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(found "")
  foreach(site ${sites})
    file(GLOB packages LIST_DIRECTORIES true ${site}/*)
    list(APPEND found ${packages})
  endforeach()
  set(${folders} "${found}" PARENT_SCOPE)
endfunction()

# find_cuda(PROBLEM): sets PROBLEM to what is missing, or to "".
function(find_cuda problem)
  find_package(CUDAToolkit 12.4 QUIET)
  pip_folders(pip)
  find_path(CUDNN_INCLUDE cudnn.h HINTS ${CUDNN_ROOT} ENV CUDNN_ROOT ${CUDAToolkit_INCLUDE_DIRS}
    PATHS ${pip} PATH_SUFFIXES include)
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9
    HINTS ${CUDNN_ROOT} ENV CUDNN_ROOT ${CUDAToolkit_LIBRARY_DIR} PATHS ${pip}
    PATH_SUFFIXES lib lib64)
  find_path(CUBLASLT_INCLUDE cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS} PATHS ${pip}
    PATH_SUFFIXES include)
  # Of these two it is only said where they lie.
  foreach(library cublasLt nvrtc)
    string(TOUPPER ${library} name)
    find_library(${name}_LIBRARY NAMES ${library} lib${library}.so.${CUDAToolkit_VERSION_MAJOR}
      HINTS ${CUDAToolkit_LIBRARY_DIR} PATHS ${pip} PATH_SUFFIXES lib lib64)
  endforeach()
  set(version 0)
  if(CUDNN_INCLUDE)
    file(STRINGS ${CUDNN_INCLUDE}/cudnn_version.h lines
      REGEX "^#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) [0-9]+$")
    string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
    string(REPLACE ";" "." version "${version}")
  endif()
  if(NOT CUDAToolkit_FOUND OR NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(${problem} "no CUDA toolkit 12.4 or later with nvcc (say where: CUDAToolkit_ROOT)"
      PARENT_SCOPE)
  elseif(NOT CUDNN_INCLUDE OR NOT CUDNN_LIBRARY)
    set(${problem} "no cuDNN 9 with headers (say where: CUDNN_ROOT)" PARENT_SCOPE)
  elseif(NOT CUBLASLT_INCLUDE)
    set(${problem} "no cublasLt.h beside the toolkit's headers, and pip has none" PARENT_SCOPE)
  elseif(version VERSION_LESS LEAST_CUDNN)
    set(${problem} "cuDNN ${version} in ${CUDNN_INCLUDE}, and ${LEAST_CUDNN} is the least"
      PARENT_SCOPE)
  else()
    set(${problem} "" PARENT_SCOPE)
  endif()
  set(CUDNN_VERSION ${version} PARENT_SCOPE)
endfunction()

set(CUDA_LIBRARIES "")
set(WITH_CUDA OFF)
if(COGSMITH_CUDA)
  find_cuda(problem)
  if(problem AND NOT COGSMITH_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "COGSMITH_CUDA=ON: ${problem}")
  elseif(problem)
    message(STATUS "Without the CUDA backend: ${problem}")
  else()
    find_package(CUDAToolkit 12.4 REQUIRED)
    set(WITH_CUDA ON)
  endif()
endif()

if(WITH_CUDA)
  # CMake's own list of architectures is older than the compiler's.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
  endif()
  if(NOT CMAKE_CUDA_HOST_COMPILER)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  set(archs 80 86 89 90a)
  if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND archs 120)
  endif()
  set(COGSMITH_CUDA_ARCHS "${archs}" CACHE STRING "compute capabilities to compile for")
  # NCCL's header, and where the library lies; without them one rank has one GPU.
  pip_folders(pip)
  find_path(NCCL_INCLUDE nccl.h HINTS ${NCCL_ROOT} ENV NCCL_ROOT ${CUDAToolkit_INCLUDE_DIRS}
    PATHS ${pip} PATH_SUFFIXES include)
  find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${NCCL_ROOT} ENV NCCL_ROOT
    ${CUDAToolkit_LIBRARY_DIR} PATHS ${pip} PATH_SUFFIXES lib lib64)
  set(WITH_NCCL OFF)
  if(NCCL_INCLUDE)
    set(WITH_NCCL ON)
  else()
    message(STATUS "Without NCCL, for several GPUs (say where: NCCL_ROOT)")
  endif()
  set(CUDA_LIBRARIES ", CUDA ${CUDAToolkit_VERSION}, cuDNN ${CUDNN_VERSION}")
  message(STATUS "With the CUDA backend: CUDA ${CUDAToolkit_VERSION}, cuDNN ${CUDNN_VERSION}, "
    "for ${COGSMITH_CUDA_ARCHS}")
endif()

# cuda_backend(TARGET): adds its files, or those in their place.
function(cuda_backend target)
  if(NOT WITH_CUDA)
    target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/kernels/cuda_none.c
      ${CMAKE_SOURCE_DIR}/kernels/comm_cuda_none.c)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.c
    ${CMAKE_SOURCE_DIR}/kernels/*.cu)
  list(FILTER sources INCLUDE REGEX "${CUDA_SOURCES}")
  list(FILTER sources EXCLUDE REGEX "/(comm_)?cuda_none\\.c$")
  if(WITH_NCCL)
    list(FILTER sources EXCLUDE REGEX "/comm_nccl_none\\.c$")
  else()
    list(FILTER sources EXCLUDE REGEX "/(comm_nccl|nccl_library)\\.c$")
  endif()
  target_sources(${target} PRIVATE ${sources})
  # The optimizer's bits are the CPU's, which rounds every product.
  set_source_files_properties(${CMAKE_SOURCE_DIR}/kernels/optim_cuda.cu PROPERTIES COMPILE_OPTIONS
    --fmad=false)
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS} ${CUDNN_INCLUDE}
    ${CUBLASLT_INCLUDE} $<$<BOOL:${WITH_NCCL}>:${NCCL_INCLUDE}>)
  set(code "")
  list(GET COGSMITH_CUDA_ARCHS 0 first)
  list(GET COGSMITH_CUDA_ARCHS -1 last)
  foreach(arch ${COGSMITH_CUDA_ARCHS})
    set(forms sm_${arch})
    if(arch STREQUAL first OR arch STREQUAL last)
      set(forms compute_${arch},sm_${arch})
    endif()
    list(APPEND code "--generate-code=arch=compute_${arch},code=[${forms}]")
  endforeach()
  # A kernel keeps to its registers: local memory is traffic that its bytes do not count.
  set(registers -Xptxas=--warn-on-local-memory-usage,--warn-on-spills)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:${code};${registers};-Xcompiler=-Wall,-Wextra>")
  target_link_libraries(${target} PUBLIC CUDA::cudart_static ${CMAKE_DL_LIBS})
  # Where the program looks for the libraries after LD_LIBRARY_PATH.
  set(folders ${CUDAToolkit_LIBRARY_DIR})
  foreach(library ${CUDNN_LIBRARY} ${CUBLASLT_LIBRARY} ${NVRTC_LIBRARY} ${NCCL_LIBRARY})
    cmake_path(GET library PARENT_PATH folder)
    list(APPEND folders ${folder})
  endforeach()
  list(REMOVE_DUPLICATES folders)
  foreach(folder ${folders})
    target_link_options(${target} INTERFACE LINKER:-rpath,${folder})
  endforeach()
endfunction()
