package aggregator

import (
	"github.com/prometheus/client_golang/prometheus"
)

// meter counts as upstream does.
type meter struct {
	down  *prometheus.GaugeVec
	falls *prometheus.CounterVec
}

func newMeter(r prometheus.Registerer) *meter {
	m := &meter{
		down: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "aggregator_unavailable_apiservice",
			Help: "Gauge of APIServices which are marked as unavailable broken down by APIService name."}, []string{"name"}),
		falls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aggregator_unavailable_apiservice_total",
			Help: "Counter of APIServices which are marked as unavailable broken down by APIService name and reason."}, []string{"name", "reason"}),
	}
	if r != nil {
		r.MustRegister(m.down, m.falls)
	}
	return m
}

// available notes what was found of svc, whose status says what was found before.
func (m *meter) available(svc *Service, v verdict) {
	if v.well() {
		m.down.WithLabelValues(svc.Name).Set(0)
		return
	}
	m.down.WithLabelValues(svc.Name).Set(1)
	if available(svc) {
		m.falls.WithLabelValues(svc.Name, v.reason).Inc()
	}
}

func (m *meter) forget(name string) { m.down.DeleteLabelValues(name) }
