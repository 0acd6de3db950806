/* A libnvidia-ml with the C interface of NVIDIA's NVML API reference, for tests. What it reports is
   set by macros when it is compiled. */
#include <stdio.h>
#include <string.h>

#ifndef COUNT
#define COUNT 2
#endif
#ifndef NAME
#define NAME "NVIDIA H20"
#endif
#ifndef OTHER_NAME
#define OTHER_NAME NAME
#endif
#ifndef MIB
#define MIB 97871ULL
#endif
#ifndef INIT_CODE
#define INIT_CODE 0
#endif
#ifndef LIMIT_CODE
#define LIMIT_CODE 0
#endif

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

static int sessions;
static int handles[COUNT + 1];

int fake_sessions(void) { return sessions; }

const char *nvmlErrorString(int code) {
    return code == 9 ? "Driver Not Loaded" : code == 18 ? "Driver/library version mismatch" : "?";
}

int nvmlInit_v2(void) {
    sessions += INIT_CODE == 0;
    return INIT_CODE;
}

int nvmlShutdown(void) {
    --sessions;
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = COUNT;
    return sessions == 1 ? 0 : 1;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= COUNT) return 2;
    *device = &handles[index];
    return 0;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    if (length < 96) return 7;
    strcpy(name, device == handles ? NAME : OTHER_NAME);
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
    memory->total = MIB << 20;
    memory->used = 1ULL << 30;
    memory->free = memory->total - memory->used;
    return device ? 0 : 2;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) {
    *milliwatts = device == handles ? 400000 : 350000;
    return LIMIT_CODE;
}
#endif
