"""An actor with methods that behave well or badly."""

import os
import signal
import sys
import time


class Odd:
    def double(self, value):
        return 2 * value

    def pid(self):
        return os.getpid()

    def modules(self):
        return sorted(sys.modules)

    def sleep(self, seconds):
        time.sleep(seconds)

    def spin(self):
        while True:
            pass

    def power(self):
        9**9**9  # in C, with the interpreter's lock held

    def fill(self, num_bytes):
        return len(bytearray(num_bytes))

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self, mark):
        if not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(3)
        return "second"

    def chatter(self):
        print("noise")
        sys.stderr.write("noise")
        os.write(1, b"noise")
        return "done"


class Broken:
    def __init__(self):
        raise ImportError("no such library")
