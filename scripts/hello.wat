;; What the demo runs as WebAssembly: says hello, then reads its standard input to the end. WASI preview 1.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\20\00\00\00\06\00\00\00")    ;; one buffer: at 32, 6 bytes
  (data (i32.const 8) "\40\00\00\00\40\00\00\00")    ;; another: at 64, 64 bytes
  (data (i32.const 32) "hello\n")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (block $end
      (loop $more
        (br_if $end (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 16)))
        (br_if $more (i32.load (i32.const 16)))))))
