/* Restore a photo without Python: restore PROGRAM IN.ppm OUT.ppm. `mirl-sparse compile` makes the program. */
#include <mirl.h>
#include <stdio.h>
#include <stdlib.h>

static int show(void* context, double done) {
  fprintf(stderr, "\r%s %3.0f%%", (const char*)context, 100 * done);
  return 0; /* anything else would stop the work */
}

static void* read_file(const char* name, size_t* bytes) {
  FILE* file = fopen(name, "rb");
  if (!file || fseek(file, 0, SEEK_END)) return perror(name), exit(2), NULL;
  *bytes = (size_t)ftell(file);
  char* data = calloc(1, *bytes + 1);
  rewind(file);
  if (!data || fread(data, 1, *bytes, file) != *bytes) return perror(name), exit(2), NULL;
  return fclose(file), data;
}

int main(int count, char** names) {
  if (count != 4) return fprintf(stderr, "usage: %s PROGRAM IN.ppm OUT.ppm\n", names[0]), 2;
  size_t bytes, photo_bytes;
  void* data = read_file(names[1], &bytes);
  char* photo = read_file(names[2], &photo_bytes);
  int width, height, header = 0;
  if (sscanf(photo, "P6 %d %d 255%n", &width, &height, &header) != 2 || !header || width < 1 || height < 1 ||
      photo_bytes < header + 1 + 3 * (size_t)width * height)
    return fprintf(stderr, "%s: expected a PPM file (P6) of 8 bits\n", names[2]), 2;

  MirlProgram* program;
  char* pixels = photo + header + 1;
  MirlPhoto description = {pixels, height, width, 3, 8, 3 * (int64_t)width};
  MirlOptions options = {.progress = show, .context = names[2]};
  if (mirl_load(data, bytes, &program) || mirl_restore(program, &description, pixels, 1.0, &options))
    return fprintf(stderr, "%s\n", mirl_message()), 1;

  FILE* file = fopen(names[3], "wb");
  if (!file || fwrite(photo, 1, photo_bytes, file) != photo_bytes || fclose(file)) return perror(names[3]), 1;
  return mirl_free(program), free(data), free(photo), 0;
}
