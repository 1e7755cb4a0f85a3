/* Stands in for the NVIDIA driver's library. What it answers is in the file that FAKE_NVML names:
 *   gpu UUID NAME BUSID MEMORY USED UTIL POWER LIMIT HEAT MIG     (a _ in NAME is a space)
 *   mig UUID NAME MEGABYTES SLICES                                (of the last gpu)
 *   link NUMBER BUSID TYPE                                        (of the last gpu)
 *   process PID USED UTIL                                         (of the last gpu)
 *   client PID USED                                               (of the last gpu, through MPS)
 *   lost                                                          (the last gpu does not answer)
 *   ecc ERRORS                                                    (uncorrectable ones of the last gpu)
 *   unmappable                                                    (a row of the last gpu cannot be remapped)
 *   xid NUMBER INSTANCE                                           (reported of the last gpu; INSTANCE 4294967295: the whole)
 * and if it is empty but for the word "mismatch", the driver was replaced beneath the library.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, TIMEOUT = 10, LOST = 15, MISMATCH = 18 };
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { char bus_id[32]; int active; unsigned type; } Link;
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, part; } Process;
typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } Sample;
typedef struct { struct Part *part; unsigned long long type, xid; unsigned instance, part_of_it; } Event;
typedef struct { unsigned told; } Events;
typedef struct Part {
    char uuid[96], name[96], bus_id[32];
    unsigned long long memory, used;
    unsigned util, power, limit, heat, mig, slices, index, parts, lost, processes, clients, unmappable;
    Process process[8], client[8];
    unsigned long long ecc;
    Sample sample[8];
    struct Part *part[8];
    Link link[36];
} Part;

static Part *gpus[16];
static unsigned count;
static unsigned long long now = 1000;
static Event events[64];
static unsigned reported;

static void spaces(char *text) { for (; *text; text++) if (*text == '_') *text = ' '; }

static int load(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    Part *gpu = NULL;
    if (!file) return NO_DRIVER;
    count = reported = 0;
    while (fgets(line, sizeof line, file)) {
        Part *new = calloc(1, sizeof *new);
        unsigned number, type, pid, busy;
        unsigned long long megabytes, used, errors;
        char bus[32];
        if (sscanf(line, "gpu %95s %95s %31s %llu %llu %u %u %u %u %u", new->uuid, new->name, new->bus_id,
                   &new->memory, &new->used, &new->util, &new->power, &new->limit, &new->heat, &new->mig) == 10) {
            spaces(new->name);
            new->index = count;
            gpus[count++] = gpu = new;
        } else if (gpu && sscanf(line, "mig %95s %95s %llu %u", new->uuid, new->name, &megabytes, &new->slices) == 4) {
            spaces(new->name);
            new->memory = megabytes << 20;
            new->used = new->memory / 2;
            new->index = gpu->parts;
            gpu->part[gpu->parts++] = new;
        } else {
            free(new);
            if (gpu && sscanf(line, "link %u %31s %u", &number, bus, &type) == 3) {
                gpu->link[number].active = 1;
                gpu->link[number].type = type;
                strcpy(gpu->link[number].bus_id, bus);
            } else if (gpu && sscanf(line, "process %u %llu %u", &pid, &used, &busy) == 3) {
                gpu->process[gpu->processes] = (Process){.pid = pid, .memory = used};
                gpu->sample[gpu->processes++] = (Sample){.pid = pid, .sm = busy};
            } else if (gpu && sscanf(line, "client %u %llu", &pid, &used) == 2) {
                gpu->client[gpu->clients++] = gpu->process[gpu->processes] = (Process){.pid = pid, .memory = used};
                gpu->sample[gpu->processes++] = (Sample){.pid = pid};
            } else if (gpu && !strncmp(line, "lost", 4)) {
                gpu->lost = 1;
            } else if (gpu && !strncmp(line, "unmappable", 10)) {
                gpu->unmappable = 1;
            } else if (gpu && sscanf(line, "ecc %llu", &errors) == 1) {
                gpu->ecc = errors;
            } else if (gpu && sscanf(line, "xid %llu %u", &errors, &number) == 2) {
                events[reported++] = (Event){.part = gpu, .type = 8, .xid = errors, .instance = number};
            } else if (!strncmp(line, "mismatch", 8)) {
                fclose(file);
                return MISMATCH;
            }
        }
    }
    fclose(file);
    return OK;
}

static int whole(Part *part) { return part->slices == 0; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "as the test wants"; }
int nvmlDeviceGetCount_v2(unsigned *answer) { int code = load(); *answer = count; return code; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Part **answer) {
    if (index >= count) return INVALID;
    if (gpus[index]->lost) return LOST;
    *answer = gpus[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Part **answer) {
    for (unsigned i = 0; i < count; i++) {
        if (!strcmp(gpus[i]->uuid, uuid)) { *answer = gpus[i]; return OK; }
        for (unsigned j = 0; j < gpus[i]->parts; j++)
            if (!strcmp(gpus[i]->part[j]->uuid, uuid)) { *answer = gpus[i]->part[j]; return OK; }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(Part *part, char *answer, unsigned size) { snprintf(answer, size, "%s", part->uuid); return OK; }
int nvmlDeviceGetName(Part *part, char *answer, unsigned size) { snprintf(answer, size, "%s", part->name); return OK; }
int nvmlDeviceGetMinorNumber(Part *part, unsigned *answer) { *answer = part->index; return OK; }
int nvmlDeviceGetPciInfo_v3(Part *part, Pci *answer) {
    memset(answer, 0, sizeof *answer);
    strcpy(answer->bus_id, part->bus_id);
    return OK;
}
int nvmlDeviceGetMemoryInfo(Part *part, unsigned long long *answer) {
    answer[0] = part->memory;
    answer[1] = part->memory - part->used;
    answer[2] = part->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(Part *part, unsigned *answer) {
    if (part->mig || !whole(part)) return NOT_SUPPORTED;
    answer[0] = part->util;
    answer[1] = 0;
    return OK;
}
int nvmlDeviceGetPowerUsage(Part *part, unsigned *answer) { *answer = part->power; return whole(part) ? OK : NOT_SUPPORTED; }
int nvmlDeviceGetEnforcedPowerLimit(Part *part, unsigned *answer) { *answer = part->limit; return OK; }
int nvmlDeviceGetTemperature(Part *part, int which, unsigned *answer) { (void)which; *answer = part->heat; return OK; }
int nvmlDeviceGetCudaComputeCapability(Part *part, int *major, int *minor) { (void)part; *major = 9; *minor = 0; return OK; }
int nvmlDeviceGetMigMode(Part *part, unsigned *now, unsigned *next) { *now = *next = part->mig; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(Part *part, unsigned *answer) { (void)part; *answer = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Part *part, unsigned index, Part **answer) {
    if (index % 2) return NOT_FOUND; /* numbers of instances have gaps */
    if (index / 2 >= part->parts) return NOT_FOUND;
    *answer = part->part[index / 2];
    return OK;
}
int nvmlDeviceGetGpuInstanceId(Part *part, unsigned *answer) { *answer = part->index + 7; return OK; }
int nvmlDeviceGetComputeInstanceId(Part *part, unsigned *answer) { (void)part; *answer = 0; return OK; }
int nvmlDeviceGetAttributes_v2(Part *part, unsigned *answer) {
    unsigned long long megabytes = part->memory >> 20;
    memset(answer, 0, 40);
    answer[6] = answer[7] = part->slices;
    memcpy((char *)answer + 32, &megabytes, sizeof megabytes);
    return OK;
}
int nvmlDeviceGetNvLinkState(Part *part, unsigned link, unsigned *answer) { *answer = part->link[link].active; return OK; }
int nvmlDeviceGetNvLinkRemoteDeviceType(Part *part, unsigned link, unsigned *answer) { *answer = part->link[link].type; return OK; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Part *part, unsigned link, Pci *answer) {
    memset(answer, 0, sizeof *answer);
    strcpy(answer->bus_id, part->link[link].bus_id);
    return OK;
}
static int list(const Process *all, unsigned count, unsigned *number, Process *answer) {
    unsigned space = *number;
    *number = count;
    if (space < count) return TOO_SMALL;
    memcpy(answer, all, count * sizeof *answer);
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Part *part, unsigned *number, Process *answer) {
    return part->mig ? NOT_SUPPORTED : list(part->process, part->processes, number, answer);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Part *part, unsigned *number, Process *answer) {
    return list(part->client, part->clients, number, answer);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Part *part, unsigned *number, Process *answer) {
    (void)part; (void)answer;
    *number = 0;
    return OK;
}
int nvmlDeviceGetProcessUtilization(Part *part, Sample *answer, unsigned *number, unsigned long long since) {
    if (!answer) { *number = part->processes + 1; return TOO_SMALL; }
    for (unsigned i = 0; i < part->processes; i++) {
        answer[i] = part->sample[i];
        answer[i].time = ++now;
    }
    return now > since ? OK : NOT_FOUND; /* the last place stays empty, as the driver leaves some */
}
int nvmlDeviceGetTotalEccErrors(Part *part, int kind, int counter, unsigned long long *answer) {
    if (kind != 1 || counter != 0) return INVALID;
    *answer = part->ecc;
    return OK;
}
int nvmlDeviceGetRemappedRows(Part *part, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = *pending = 0;
    *failed = part->unmappable;
    return OK;
}
int nvmlEventSetCreate(Events **answer) {
    *answer = calloc(1, sizeof **answer);
    (*answer)->told = reported; /* what was before is not told */
    return OK;
}
int nvmlDeviceRegisterEvents(Part *part, unsigned long long types, Events *set) {
    (void)part; (void)set;
    return types == 8 ? OK : NOT_SUPPORTED;
}
int nvmlEventSetWait_v2(Events *set, Event *answer, unsigned milliseconds) {
    if (milliseconds || set->told >= reported) return TIMEOUT;
    *answer = events[set->told++];
    return OK;
}
