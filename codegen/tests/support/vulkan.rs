//! Launches WGSL through wgpu.

use crate::support::Launch;
use butterfly_ir::Kernel;
use wgpu::util::DeviceExt;

pub(crate) struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

/// A Vulkan device; `scripts/setup` installs one in software.
pub(crate) fn device() -> Gpu {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let options = wgpu::RequestAdapterOptions::default();
    let adapter = pollster::block_on(instance.request_adapter(&options))
        .expect("a Vulkan device; scripts/setup installs one in software");
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: wgpu::Features::SHADER_F16,
        required_limits: adapter.limits(),
        ..Default::default()
    }))
    .expect("a device with f16");
    Gpu { device, queue }
}

impl Gpu {
    /// Launches a kernel once, and returns the bytes of o and lse.
    pub(crate) fn launch(&self, kernel: &Kernel, launch: &Launch) -> (Vec<u8>, Vec<u8>) {
        let (_, text) = &kernel.files[0];
        let lse = vec![0; launch.lse_bytes];
        let contents = launch.inputs.iter().chain([&launch.o, &lse]);
        let buffers: Vec<wgpu::Buffer> = contents
            .map(|contents| {
                self.device
                    .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                        label: None,
                        contents,
                        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                    })
            })
            .collect();
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Wgsl(
                    String::from_utf8(text.clone()).expect("text").into(),
                ),
            });
        let pipeline = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: Some(&kernel.entry),
                compilation_options: Default::default(),
                cache: None,
            });
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(&buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            let [x, y, z] = launch.grid;
            pass.dispatch_workgroups(x, y, z);
        }
        let outputs = &buffers[buffers.len() - 2..];
        let copies: Vec<wgpu::Buffer> = outputs
            .iter()
            .map(|buffer| {
                let copy = self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: buffer.size(),
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, buffer.size());
                copy
            })
            .collect();
        self.queue.submit([encoder.finish()]);
        for copy in &copies {
            copy.map_async(wgpu::MapMode::Read, .., |result| result.expect("maps"));
        }
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("finishes");
        let read = |copy: &wgpu::Buffer| copy.get_mapped_range(..).to_vec();
        (read(&copies[0]), read(&copies[1]))
    }
}
