// Autograd asks for a device guard and for CUDA hooks before it accepts tensors whose device is "cuda".  These report one device
// and do nothing, since all computations run on the CPU.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device kDevice{c10::DeviceType::CUDA, 0};

c10::Stream default_stream() {
  return c10::Stream(c10::Stream::DEFAULT, kDevice);
}

struct OneDevice final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override {
    return kDevice;
  }
  c10::Device exchangeDevice(c10::Device) const override {
    return kDevice;
  }
  c10::Stream getStream(c10::Device) const noexcept override {
    return default_stream();
  }
  c10::Stream getNewStream(c10::Device, int) const override {
    return default_stream();
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return default_stream();
  }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryEvent(void*) const override {
    return true;
  }
};

const OneDevice one_device;
const c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, &one_device);

}  // namespace

namespace at {

// torch looks the hooks up by this name.

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return 1;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return 0;
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at
