/* The C interface of the runtime: load a compiled ticket (`mirl-sparse compile`) and restore images with it,
 * without Python. Functions that can fail return a MirlStatus; mirl_message() then says why, in one line. */
#ifndef MIRL_H
#define MIRL_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MIRL_API __declspec(dllexport)
#else
#define MIRL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct MirlProgram MirlProgram; /* a compiled ticket; threads may share it */
typedef struct MirlPlan MirlPlan;       /* memory for images of one size; one thread at a time may use it */

typedef enum MirlStatus {
  MIRL_OK = 0,
  MIRL_BAD_PROGRAM = 1,   /* the file is damaged, of another version, or not a program */
  MIRL_BAD_ARGUMENT = 2,  /* a size, a pointer or an option is wrong */
  MIRL_OUT_OF_MEMORY = 3, /* more memory is needed than there is, or than may be used */
  MIRL_CANCELLED = 4      /* the progress function asked to stop */
} MirlStatus;

/* How to run. A struct of zeros gives the defaults. */
typedef struct MirlOptions {
  int64_t threads;             /* threads to use; 0: OMP_NUM_THREADS, or as many as there are processors */
  const char* instruction_set; /* "avx512", "avx2" or "portable"; null: MIRL_CPU_ISA, or the best */
  int64_t max_bytes; /* for mirl_restore: of buffers and pixels, beside some MB a thread; 0: 1 GiB */
  /* Called now and then, on the calling thread, with the share of the work that is done, 0 to 1. Anything but
   * 0 stops the call, which then returns MIRL_CANCELLED. May be null. */
  int (*progress)(void* context, double done);
  void* context; /* handed to `progress` */
} MirlOptions;

/* A photo in memory: interleaved RGB or RGBA. */
typedef struct MirlPhoto {
  const void* pixels; /* of the first row */
  int64_t height, width;
  int64_t channels; /* 3, or 4; the fourth is copied as it is */
  int64_t bits;     /* of a value: 8 (uint8_t), or 16 (uint16_t, of this machine's byte order) */
  int64_t stride;   /* bytes from one row to the next */
} MirlPhoto;

/* What went wrong in this thread's last call that failed. */
MIRL_API const char* mirl_message(void);

/* Loads a program from memory, which may be freed afterwards. Every byte is checked: any file at all gives a
 * program or an error. */
MIRL_API MirlStatus mirl_load(const void* data, size_t bytes, MirlProgram** program);
MIRL_API void mirl_free(MirlProgram* program);

/* The number that sides of images given to mirl_plan must be multiples of. */
MIRL_API int64_t mirl_multiple(const MirlProgram* program);

/* Bytes of memory that a plan for (batch, 3, height, width) takes, or -1 for a size that it cannot have. */
MIRL_API int64_t mirl_required_bytes(const MirlProgram* program, int64_t batch, int64_t height,
                                     int64_t width);

/* Makes a plan. The program must outlive it. */
MIRL_API MirlStatus mirl_plan(const MirlProgram* program, int64_t batch, int64_t height, int64_t width,
                              MirlPlan** plan);
MIRL_API void mirl_free_plan(MirlPlan* plan);

/* Restores an image, float32 (batch, 3, height, width) in [0, 1], contiguous; the result is not clipped.
 * `options` may be null. */
MIRL_API MirlStatus mirl_run(MirlPlan* plan, const float* image, float* result, const MirlOptions* options);

/* The size of the tiles in which mirl_restore restores a photo of that size: one, a little larger than the
 * photo, where it has enough memory. `max_bytes` is as in MirlOptions. */
MIRL_API MirlStatus mirl_tile_size(const MirlProgram* program, int64_t height, int64_t width,
                                   int64_t max_bytes, int64_t* tile_height, int64_t* tile_width);

/* Restores a photo of any size into `result`, which has the photo's layout and may be its memory. `strength`
 * is the share of the restored photo in the result, 0 to 1; the rest is the photo as it was. Where the whole
 * photo would take more memory than may be used, it is restored in overlapping tiles. */
MIRL_API MirlStatus mirl_restore(const MirlProgram* program, const MirlPhoto* photo, void* result,
                                 double strength, const MirlOptions* options);

#ifdef __cplusplus
}
#endif
#endif
